package ui

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Size renders a number of bytes in binary units with at most one decimal:
// "512 MiB", "1.5 GiB".
func Size(bytes int64) string {
	if bytes < 0 {
		return "-" + Size(-max(bytes, -1<<63+1))
	}
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	v, u := float64(bytes), 0
	// 1023.95 would print as 1024.0.
	for v >= 1023.95 && u < len(units)-1 {
		v /= 1024
		u++
	}
	return strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0") + " " + units[u]
}

// Duration renders a time span in the usual short form: "380ms", "12.3s", "1m05s", "3h12m",
// "5d3h".
func Duration(d time.Duration) string {
	sign := ""
	if d < 0 {
		sign, d = "-", -max(d, -1<<63+1)
	}
	day := 24 * time.Hour
	switch {
	case d < 999500*time.Microsecond:
		return sign + fmt.Sprintf("%dms", d.Round(time.Millisecond).Milliseconds())
	case d < 59950*time.Millisecond:
		return sign + fmt.Sprintf("%.1fs", d.Seconds())
	case d.Round(time.Second) < time.Hour:
		d = d.Round(time.Second)
		return sign + fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d.Round(time.Minute) < 2*day:
		d = d.Round(time.Minute)
		return sign + fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	default:
		d = d.Round(time.Hour)
		return sign + fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	}
}

// Escape makes a string safe and unambiguous to show: control characters (including newlines),
// bytes that are not UTF-8 and characters that change the direction of text become Go escapes.
func Escape(s string) string {
	clean := true
	for _, r := range s {
		if r == utf8.RuneError || unsafe(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unsafe(r):
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// escapeLines is Escape for text of several lines, which may contain tabs.
func escapeLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = Escape(strings.ReplaceAll(lines[i], "\t", "    "))
	}
	return strings.Join(lines, "\n")
}

// unsafe reports C0 and C1 controls, DEL, line and paragraph separators and the bidirectional
// controls, with which text can pose as other text.
func unsafe(r rune) bool {
	switch {
	case r < 0x20, r >= 0x7f && r < 0xa0:
		return true
	case r == 0x061c, r == 0x200e, r == 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
		return true
	case r == 0xfeff:
		return true
	}
	return false
}

// Clean turns one line of a foreign program's output into plain text. It drops escape sequences
// and everything before a carriage return, and shows other control characters as [Escape] does.
func Clean(line string) string {
	line = strings.TrimRight(line, "\r\n")
	if strings.IndexByte(line, 0x1b) >= 0 {
		line = dropSequences(line)
	}
	if i := strings.LastIndexByte(line, '\r'); i >= 0 {
		line = line[i+1:]
	}
	return Escape(strings.ReplaceAll(line, "\t", "    "))
}

// dropSequences removes ECMA-48 escape sequences: CSI (ESC [ … final), the
// string commands (OSC, DCS, SOS, PM, APC, ended by BEL or ESC \) and the
// short ones (ESC, intermediates, final).
func dropSequences(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != 0x1b {
			b.WriteByte(s[i])
			continue
		}
		i++
		if i >= len(s) {
			break
		}
		switch s[i] {
		case '[':
			for i++; i < len(s) && (s[i] < 0x40 || s[i] > 0x7e); i++ {
			}
		case ']', 'P', 'X', '^', '_':
			for i++; i < len(s) && s[i] != 0x07; i++ {
				if s[i] == 0x1b && i+1 < len(s) && s[i+1] == '\\' {
					i++
					break
				}
			}
		default:
			for i < len(s) && s[i] >= 0x20 && s[i] <= 0x2f {
				i++
			}
		}
	}
	return b.String()
}
