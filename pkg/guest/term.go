package guest

import (
	"fmt"
	"slices"
	"strings"
)

// knownTerms are kinds of terminals that every system knows.
var knownTerms = []string{"", "dumb", "linux", "screen", "screen-256color", "tmux-256color", "vt100", "xterm", "xterm-256color"}

// termDirs are where ncurses looks for descriptions of terminals (terminfo(5)): Debian and
// others compile in some of these.
var termDirs = []string{`"$HOME/.terminfo"`, "/etc/terminfo", "/lib/terminfo", "/usr/lib/terminfo", "/usr/share/terminfo", "/usr/local/share/terminfo"}

// termCandidates are what can stand for a kind of terminal, the likest first. Terminals that
// are younger than the guest all understand what xterm does.
func termCandidates(term string) []string {
	family, _, _ := strings.Cut(term, "-")
	family, _, _ = strings.Cut(family, ".")
	if family == "" {
		return []string{term, "xterm-256color"}
	}
	return []string{term, family + "-256color", family, "xterm-256color"}
}

// termScript renders the lines with which a shell of the guest changes TERM if the guest
// does not know the terminal. "" for one that every guest knows.
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
			continue // none has such a name, and it would lead elsewhere
		}
		names = append(names, quoted)
	}
	for _, dir := range termDirs {
		places = append(places, dir+`/"${term%"${term#?}"}/$term"`)
	}
	// A guest without any descriptions needs none.
	return fmt.Sprintf(`for term in %s; do
	for file in %s; do
		if [ -f "$file" ]; then export TERM="$term"; break 2; fi
	done
done
`, strings.Join(names, " "), strings.Join(places, " ")), nil
}
