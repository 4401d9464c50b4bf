package guest

import (
	"fmt"
	"slices"
	"strings"
)

// knownTerms are the terminal types that every system knows.
var knownTerms = []string{"", "dumb", "linux", "screen", "screen-256color", "tmux-256color", "vt100", "xterm", "xterm-256color"}

// termDirs are the directories where ncurses looks for terminal descriptions (terminfo(5)).
// Debian and others compile in some of these.
var termDirs = []string{`"$HOME/.terminfo"`, "/etc/terminfo", "/lib/terminfo", "/usr/lib/terminfo", "/usr/share/terminfo", "/usr/local/share/terminfo"}

// termCandidates are the terminal types that can stand in for term, best first. Every terminal
// newer than the guest understands what xterm does.
func termCandidates(term string) []string {
	family, _, _ := strings.Cut(term, "-")
	family, _, _ = strings.Cut(family, ".")
	if family == "" {
		return []string{term, "xterm-256color"}
	}
	return []string{term, family + "-256color", family, "xterm-256color"}
}

// termScript renders the lines with which a shell in the guest changes TERM if the guest does
// not know the terminal. It is "" for a terminal that every guest knows.
func termScript(term string) (string, error) {
	if slices.Contains(knownTerms, term) {
		return "", nil
	}
	var names, places []string
	for _, name := range termCandidates(term) {
		quoted, err := Quote(name)
		if err != nil {
			return "", fmt.Errorf("TERM: %w", err)
		}
		if strings.Contains(name, "/") {
			continue // no terminal has such a name, and it would lead to another directory
		}
		names = append(names, quoted)
	}
	for _, dir := range termDirs {
		places = append(places, dir+`/"${term%"${term#?}"}/$term"`)
	}
	// In a guest without any descriptions, TERM stays as it is.
	return fmt.Sprintf(`for term in %s; do
	for file in %s; do
		if [ -f "$file" ]; then export TERM="$term"; break 2; fi
	done
done
`, strings.Join(names, " "), strings.Join(places, " ")), nil
}
