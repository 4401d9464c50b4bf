package config

import (
	"fmt"
	"math/big"
	"strings"
)

// units are the units of sizes. There are no shorter ones: "4G" is 4 GiB to one tool and 4 GB
// to the next.
var units = []struct {
	name  string
	bytes int64
}{
	{"MiB", MiB},
	{"GiB", GiB},
	{"TiB", TiB},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
}

const unitsHint = `units: MiB, GiB, TiB (of 1024) and MB, GB, TB (of 1000), such as "4GiB"`

// parseSize reads a size such as "4GiB", "1.5 GiB" or "500MB" and returns bytes. A problem
// names the unit to use.
func parseSize(s string) (int64, *problem) {
	i := 0
	for i < len(s) && (s[i] >= '0' && s[i] <= '9' || s[i] == '.') {
		i++
	}
	number, unit := s[:i], strings.TrimPrefix(s[i:], " ")
	value, ok := new(big.Rat).SetString(number)
	if !ok || len(number) > 30 || strings.HasPrefix(number, ".") || strings.HasSuffix(number, ".") {
		return 0, &problem{msg: "it does not begin with a number", hint: unitsHint}
	}
	if unit == "" {
		return 0, &problem{msg: "it has no unit", hint: fmt.Sprintf("write %q; %s", number+guessUnit(value), unitsHint)}
	}
	for _, u := range units {
		if unit != u.name {
			continue
		}
		value.Mul(value, new(big.Rat).SetInt64(u.bytes))
		n := new(big.Int).Quo(value.Num(), value.Denom())
		if !n.IsInt64() {
			return 0, &problem{msg: "it is too large", hint: unitsHint}
		}
		return n.Int64(), nil
	}
	p := &problem{msg: fmt.Sprintf("%s is no unit here", literal(unit)), hint: unitsHint}
	switch strings.ToLower(unit) {
	case "m", "mb", "mib":
		p.hint = fmt.Sprintf("write %q; %s", number+"MiB", unitsHint)
	case "g", "gb", "gib":
		p.hint = fmt.Sprintf("write %q; %s", number+"GiB", unitsHint)
	case "t", "tb", "tib":
		p.hint = fmt.Sprintf("write %q; %s", number+"TiB", unitsHint)
	}
	return 0, p
}

// guessUnit guesses the missing unit of a number.
func guessUnit(v *big.Rat) string {
	if v.Cmp(big.NewRat(512, 1)) >= 0 {
		return "MiB"
	}
	return "GiB"
}

// FormatSize writes a size exactly, in the largest binary unit that gives a whole number.
// devvm.toml accepts the result if the size is in whole MiB.
func FormatSize(n int64) string {
	for _, u := range []struct {
		name  string
		bytes int64
	}{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}} {
		if n != 0 && n%u.bytes == 0 {
			return fmt.Sprintf("%d%s", n/u.bytes, u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
