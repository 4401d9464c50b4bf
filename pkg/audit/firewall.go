package audit

import (
	"regexp"
	"strings"
)

// nftBlock matches the head of a block in nft's listing (nft(8)).
var nftBlock = regexp.MustCompile(`^(?:table|chain|set|map|flowtable|counter|quota|limit|secmark|synproxy|ct (?:helper|timeout|expectation)) .*\{$`)

// nftLines flattens the output of `nft --stateless list ruleset`. Each line is prefixed with
// the names of its enclosing blocks and keeps its place in the listing. Elements of sets that
// change by themselves are left out.
func nftLines(text string) []string {
	var out, blocks []string
	volatile := false          // in a set whose elements come and go
	var pending []string       // a statement that continues on the next line
	open := 0                  // braces that it has opened
	add := func(line string) { // takes a complete statement
		if strings.HasPrefix(line, "flags ") && (strings.Contains(line, "dynamic") || strings.Contains(line, "timeout")) {
			volatile = true
		}
		if !volatile || !strings.HasPrefix(line, "elements = ") {
			out = append(out, strings.Join(append(blocks[:len(blocks):len(blocks)], line), " / "))
		}
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case open > 0:
			pending = append(pending, line)
			if open += braces(line); open <= 0 {
				add(strings.Join(pending, " "))
				pending, open = nil, 0
			}
		case line == "", strings.HasPrefix(line, "#"):
		case nftBlock.MatchString(line):
			blocks = append(blocks, strings.TrimSpace(strings.TrimSuffix(line, "{")))
			volatile = false
			out = append(out, strings.Join(blocks, " / "))
		case line == "}":
			if len(blocks) > 0 {
				blocks = blocks[:len(blocks)-1]
			}
		case braces(line) > 0:
			pending, open = []string{line}, braces(line)
		default:
			add(line)
		}
	}
	if open > 0 {
		add(strings.Join(pending, " "))
	}
	return out
}

// braces returns how many more braces a line opens than it closes, outside of quotes.
func braces(line string) int {
	n, quoted := 0, false
	for _, r := range line {
		switch {
		case r == '"':
			quoted = !quoted
		case quoted:
		case r == '{':
			n++
		case r == '}':
			n--
		}
	}
	return n
}

// legacyLines flattens the output of iptables-save(8). Each line is prefixed with its table's
// name. Counters and comments are left out.
func legacyLines(text string) []string {
	var out []string
	table := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "", strings.HasPrefix(line, "#"), line == "COMMIT":
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case strings.HasPrefix(line, ":"): // ":FORWARD DROP [12:3456]"
			chain, _, _ := strings.Cut(line, " [")
			out = append(out, table+" "+chain)
		default:
			if strings.HasPrefix(line, "[") { // counters, with -c
				_, line, _ = strings.Cut(line, "] ")
			}
			out = append(out, table+" "+line)
		}
	}
	return out
}
