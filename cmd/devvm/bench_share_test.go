//go:build vmtest

package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
)

// shareRow is one kind of work, on the VM's own ext4 and on the mount, one after the
// other in one run.
type shareRow struct {
	Ext4  float64 `json:"ext4"`
	Mount float64 `json:"mount"`
	Ratio float64 `json:"ratio"` // of the times: above 1 the mount is slower
	Unit  string  `json:"unit"`
	Most  float64 `json:"at_most,omitempty"` // the ratio that it should have
}

// shareWork is what is timed, as commands of a shell in the VM whose current directory is
// on one of the two. What cools is done before the clock starts.
var shareWork = []struct {
	name    string
	prepare string
	run     string
	times   int     // that the work does something, for a time of one; 0: seconds of all
	most    float64 // see shareRow.Most
}{
	{"git status, first", cold, "git -c safe.directory='*' -C tree status --porcelain", 0, 5.7},
	{"git status, warm", "git -c safe.directory='*' -C tree status >/dev/null", "git -c safe.directory='*' -C tree status --porcelain", 0, 1.6},
	{"git status, cold", cold, "git -c safe.directory='*' -C tree status --porcelain", 0, 2.4},
	{"git status of 5,000, first", cold, "git -c safe.directory='*' -C small status --porcelain", 0, 5.7},
	{"git status of 5,000, cold", cold, "git -c safe.directory='*' -C small status --porcelain", 0, 2.4},
	{"read 2,000 files, cold", cold, "cat tree/d*0/*", 0, 2.8},
	{"stat, not cached, ms", cold, "perl -e 'for $d (0..9) { lstat qq(tree/d$d/f$_) for 0..99 }'", 1000, 0},
	{"stat, after a second, ms", "sleep 1.5", "perl -e 'for $d (0..9) { lstat qq(tree/d$d/f$_) for 0..99 }'", 1000, 0},
	{"stat, cached, ms", "", "perl -e 'for (1..10) { for $d (0..9) { lstat qq(tree/d$d/f$_) for 0..99 } }'", 10000, 0},
	{"untar 5,000 files", "", "mkdir untar && tar -xf /var/tmp/small.tar -C untar", 0, 6},
	{"a tree as by npm, 3,000 files", "", "perl /var/tmp/npm.pl", 0, 6},
	{"remove 8,000 files", "", "rm -r untar node_modules", 0, 0},
	{"write 256 MB", "sync", "dd if=/dev/shm/data of=big bs=1M conv=fsync status=none", 0, 0.8},
	{"read 256 MB, cold", cold, "dd if=big of=/dev/null bs=1M status=none", 0, 1.05},
}

const cold = "sync; echo 3 >/proc/sys/vm/drop_caches"

// npmScript makes packages as npm does: directories, small files, each written under a
// name of its own and renamed.
const npmScript = `use strict;
mkdir "node_modules";
for my $p (0..299) {
	my $d = "node_modules/p$p";
	mkdir $d; mkdir "$d/lib"; mkdir "$d/dist";
	for my $n ("package.json", "README.md", map({ ("lib/$_.js", "dist/$_.js") } 0..3)) {
		open my $f, ">", "$d/$n.tmp" or die $!;
		print $f "x" x (200 + 37 * $p % 3000);
		close $f;
		rename "$d/$n.tmp", "$d/$n";
	}
}
`

// BenchmarkShare compares work on the project's directory with the same on the VM's own
// disk, and prints the table of docs/performance.md.
func BenchmarkShare(b *testing.B) {
	h := newBench(b)
	// Nobody watches the files that are put there at once, and telling of them would
	// keep the VM busy meanwhile.
	const toml = "cpus = 2\nmemory = \"2GiB\"\n\n[share]\nignore = [\"tree\", \"small\"]\n"
	if err := os.WriteFile(filepath.Join(h.dir, "devvm.toml"), []byte(toml), 0o600); err != nil {
		b.Fatal(err)
	}
	h.must(h.devvm("up"))
	h.guest(nil, "mkdir -p /var/tmp/own; cat >/var/tmp/npm.pl", strings.NewReader(npmScript))
	h.guest(nil, "head -c 1M /dev/urandom >/dev/shm/1; for i in {1..256}; do cat /dev/shm/1; done >/dev/shm/data", nil)
	h.guest(nil, "cat >/var/tmp/small.tar", bytes.NewReader(manyFiles(b, 50, 100)))
	h.repository("tree", 200)
	h.repository("small", 50)

	rows := map[string]shareRow{}
	for _, work := range shareWork {
		row := shareRow{Unit: "s", Most: work.most}
		for _, where := range []struct {
			dir     string
			seconds *float64
		}{{"/var/tmp/own", &row.Ext4}, {h.dir, &row.Mount}} {
			h.guest(where.seconds, "cd '"+where.dir+"'\n"+work.prepare+"\nbegin\n"+work.run+" >/dev/null\nend", nil)
			if work.times > 0 {
				*where.seconds *= 1000 / float64(work.times)
				row.Unit = "ms"
			}
		}
		row.Ratio = row.Mount / row.Ext4
		rows[work.name] = row
		b.Logf("%s: %.3f %s on ext4, %.3f on the mount", work.name, row.Ext4, row.Unit, row.Mount)
	}

	t := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "\nthe project's directory\text4\tmount\tratio\tat most")
	for _, work := range shareWork {
		row := rows[work.name]
		most := ""
		if row.Most > 0 {
			most = fmt.Sprintf("%.1f", row.Most)
		}
		if row.Most > 0 && row.Ratio > row.Most {
			most += " (not reached)"
		}
		fmt.Fprintf(t, "  %s\t%.3f\t%.3f\t%.2f\t%s\n", work.name, row.Ext4, row.Mount, row.Ratio, most)
	}
	_ = t.Flush()
	out, err := json.MarshalIndent(map[string]any{"share": rows}, "", "  ")
	if err != nil {
		b.Fatal(err)
	}
	fmt.Printf("\n%s\n", out)
}

// repository puts one of so many directories of 100 files on both, with an index that knows
// nothing of them but their content, so that the first git status reads them all.
func (h *bench) repository(name string, dirs int) {
	h.Helper()
	tree := filepath.Join(h.dir, name)
	unpack := exec.Command("tar", "-x", "-C", tree)
	unpack.Stdin = bytes.NewReader(manyFiles(h.B, dirs, 100))
	h.must(exec.Command("mkdir", tree))
	h.must(unpack)
	h.must(exec.Command("sh", "-euc", `cd "$0"; git init -q; git config gc.auto 0; git add .
		git -c user.name=u -c user.email=u@localhost commit -q -m all; git gc -q; rm .git/index; git read-tree HEAD`, tree))
	h.guest(nil, "tar -x -C /var/tmp/own", bytes.NewReader(h.must(exec.Command("tar", "-c", "-C", h.dir, name))))
}

// guest runs a script in the VM. The seconds, if wanted, are those between its "begin"
// and its "end", by the VM's clock.
func (h *bench) guest(seconds *float64, script string, stdin io.Reader) {
	h.Helper()
	cmd := h.devvm("exec", "--", "bash", "-euc", `
begin() { start=${EPOCHREALTIME/./}; }
end() { echo "$((${EPOCHREALTIME/./} - start))"; }
`+script)
	cmd.Stdin = stdin
	out := h.must(cmd)
	if seconds == nil {
		return
	}
	us, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		h.Fatalf("%s: %v", script, err)
	}
	*seconds = us / 1e6
}

// manyFiles is a tar of small files, some text in each.
func manyFiles(tb testing.TB, dirs, each int) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			tb.Fatal(err)
		}
	}
	for d := range dirs {
		put(tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("d%d/", d), Mode: 0o755}, nil)
		for f := range each {
			text := strings.Repeat(fmt.Sprintf("line of file %d in directory %d\n", f, d), 1+(d+f)%60)
			put(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("d%d/f%d", d, f), Mode: 0o644}, []byte(text))
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}
