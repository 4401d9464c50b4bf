//go:build attack

package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// victims are files of the user's beside the project: canaries.
type victims struct{ dir, before string }

const victimSecret = "the user's own secret"

// newVictims makes them where the user could write them by mistake.
func (s *scene) newVictims(t *testing.T, name string) *victims {
	t.Helper()
	v := &victims{dir: filepath.Join(s.data, "home", name)}
	t.Cleanup(func() { _ = os.RemoveAll(v.dir) })
	must(t, "rm", "-rf", v.dir)
	for _, f := range []string{".bash_aliases", ".ssh/authorized_keys", "sub/id", "sub/one", "sub/two"} {
		path := filepath.Join(v.dir, f)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(victimSecret), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	must(t, "chown", "-R", s.user+":", v.dir)
	v.before = v.sum(t)
	return v
}

// sum is what they are: names, modes, times, contents.
func (v *victims) sum(t *testing.T) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(v.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(h, path, info.Mode(), info.ModTime().UnixNano())
		if d.Type().IsRegular() {
			var b []byte
			b, err = os.ReadFile(path)
			h.Write(b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(h.Sum(nil))
}

// state says in words whether they are as they were.
func (v *victims) state(t *testing.T) string {
	t.Helper()
	if v.sum(t) == v.before {
		return "as before"
	}
	return "CHANGED"
}

// attackCopy is what root in a VM makes of `devvm cp`, by names in the project's directory.
func (s *scene) attackCopy(t *testing.T, l lan, a victim) {
	s.section("Root in the VM: names in the project's directory, when its owner runs devvm cp")
	home := s.newVictims(t, "victims")
	inVM := func(script string, args ...string) string {
		t.Helper()
		return must(t, a.run.argv(append([]string{"exec", "--", "sh", "-euc", script, "sh"}, args...)...)...)
	}
	cp := func(args ...string) error {
		p := s.asUser(l.host, "sh", "-c", `cd "$1" && shift && exec "$@"`, "sh", a.dir, s.program, "cp", "-q")
		_, err := command(t.Context(), nil, p.argv(args...)...)
		return err
	}
	said := func(err error) string {
		if err == nil {
			return "exit code 0"
		}
		line, _, _ := strings.Cut(err.Error()[strings.Index(err.Error(), "\n")+1:], "\n")
		return line
	}

	inVM(`echo "the VM's" >/root/report.txt
mkdir -p /var/lib/app/.ssh /var/lib/app/sub
echo "the VM's key" >/var/lib/app/.ssh/authorized_keys
for f in id one two; do echo "the VM's" >/var/lib/app/sub/$f; done
# tar takes them in the file system's order: whichever that is, something comes after sub has
# been seen, and most of it into sub.
for n in 1 2 3 4 5 6; do head -c 4M /dev/urandom >/var/lib/app/sub/big$n; done
for n in $(seq 40); do echo "the VM's" >/var/lib/app/sub/small$n; done
ln -s "$1/.bash_aliases" report.txt
ln -s "$1" data`, home.dir)

	for _, args := range [][]string{
		{"vm:/root/report.txt", "."},
		{"vm:/root/report.txt", "report.txt"},
		{"vm:/root/report.txt", "data/.bash_aliases"},
		{"vm:/var/lib/app/.", "./data"},
		{"vm:/var/lib/app/.ssh", "data"},
		{"data/sub", "vm:/srv/"},
		{"-L", "report.txt", "vm:/srv/"},
		{"data/.", "vm:/srv/got"},
	} {
		err := cp(args...)
		s.attempt(t, "the project's owner", "devvm cp "+strings.Join(args, " "), "refused, nothing written", home.state(t)+"; "+said(err), err != nil && home.sum(t) == home.before)
	}
	got := inVM(`grep -rlF "$1" /srv || true`, victimSecret)
	s.attempt(t, a.root.name, "what it has got of them", "nothing", got, got == "")

	// Controls: the same to a plain name, and by a link that the user has made.
	err := cp("vm:/root/report.txt", "plain.txt")
	b, _ := os.ReadFile(filepath.Join(a.dir, "plain.txt"))
	s.attempt(t, "the project's owner", "control: to a plain name", "the VM's", said(err)+", "+string(b), err == nil && strings.Contains(string(b), "the VM's"))
	own := s.newVictims(t, "own")
	way := filepath.Join(s.data, "home", "way")
	must(t, "ln", "-sfn", own.dir, way)
	t.Cleanup(func() { _ = os.Remove(way) })
	err = cp("vm:/root/report.txt", way)
	s.attempt(t, "the project's owner", "control: by a link of the user's own", "written", own.state(t)+"; "+said(err), err == nil && own.sum(t) != own.before)
	err = cp("-L", way, "vm:/srv/own")
	got = inVM(`grep -rlF "$1" /srv || true`, victimSecret)
	s.attempt(t, a.root.name, "control: what the user has copied to it", "found", got, err == nil && strings.Contains(got, "/srv/own/"))
	inVM(`rm -r /srv/own`)

	// While a copy runs, the VM swaps directories for links: in the staging directory, the
	// destination and the source.
	inVM(`mkdir -p have/sub src/sub
echo "the project's" >have/sub/one
echo "the project's" >src/sub/inner
for f in id one two; do echo "the project's" >src/sub/$f; done
head -c 24M /dev/urandom >src/busy
cat >/root/swap <<'END'
cd "$1"; victims=$2 n=0
while [ ! -e stop ]; do
	for d in have/.devvm-cp-*/x/sub src/sub; do
		[ -d "$d" ] && [ ! -L "$d" ] || continue
		mv "$d" "$d.was" 2>/dev/null && ln -s "$victims/sub" "$d" && n=$((n + 1))
	done
	: >have/touched # so that this kernel looks what is in there
	if [ -L src/sub ]; then rm src/sub; mv src/sub.was src/sub; fi
done
echo "$n"
END`)
	// swapping copies four times, or until a swap has been in the way of one: on a busy
	// machine a copy may end before the VM has seen what it made.
	const leastCopies, mostCopies = 4, 60
	swapping := func(disturb bool, try func() error) (swaps, copies, failed int) {
		type end struct {
			out string
			err error
		}
		ended := make(chan end, 1)
		argv := a.run.argv("exec", "--", "sh", "/root/swap", a.dir, home.dir)
		go func() {
			out, err := command(t.Context(), nil, argv...)
			ended <- end{out, err}
		}()
		for copies < leastCopies || disturb && failed == 0 && copies < mostCopies {
			copies++
			if try() != nil {
				failed++
			}
		}
		must(t, "touch", filepath.Join(a.dir, "stop"))
		e := <-ended
		if e.err != nil {
			t.Error(e.err)
		}
		must(t, "rm", filepath.Join(a.dir, "stop"))
		_, _ = fmt.Sscan(e.out, &swaps)
		return swaps, copies, failed
	}
	found := func(dir string) string {
		out, _ := command(t.Context(), nil, "grep", "-rlF", victimSecret, dir) // links are not followed
		return strings.TrimSpace(out)
	}

	err = cp("vm:/var/lib/app/.", "have")
	b, _ = os.ReadFile(filepath.Join(a.dir, "have", "sub", "id"))
	s.attempt(t, "the project's owner", "control: cp vm:/var/lib/app/. have", "the VM's", said(err)+", "+string(b), err == nil && strings.Contains(string(b), "the VM's"))
	swaps, copies, failed := swapping(true, func() error { return cp("vm:/var/lib/app/.", "have") })
	s.attempt(t, a.root.name, fmt.Sprintf("%d swaps in %d copies to this host (%d failed)", swaps, copies, failed), "nothing moved or written", home.state(t)+"; "+found(a.dir), swaps > 0 && failed > 0 && home.sum(t) == home.before && found(a.dir) == "")

	inVM(`if [ -e src/sub.was ]; then rm -rf src/sub; mv src/sub.was src/sub; fi`)
	err = cp("./src", "vm:/opt/calm")
	got = inVM(`cat /opt/calm/sub/inner`)
	s.attempt(t, "the project's owner", "control: cp ./src vm:/opt/calm", "the project's", said(err)+", "+got, err == nil && strings.Contains(got, "the project's"))
	n := 0
	swaps, copies, failed = swapping(false, func() error {
		n++
		return cp("./src", fmt.Sprintf("vm:/opt/swapped%d", n))
	})
	got = inVM(`grep -rlF "$1" /opt || true`, victimSecret)
	s.attempt(t, a.root.name, fmt.Sprintf("%d swaps in %d copies to the VM (%d failed)", swaps, copies, failed), "nothing in the VM", home.state(t)+"; "+got, swaps > 0 && got == "" && home.sum(t) == home.before)
	inVM(`rm -rf /opt/calm /opt/swapped* /var/lib/app src have data report.txt plain.txt`)
}
