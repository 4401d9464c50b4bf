package template

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/file"
)

// add puts a template of the shape into the store.
func add(t *testing.T, s *Store, shape Shape, parent string) Template {
	t.Helper()
	dir := t.TempDir()
	disk, memory := filepath.Join(dir, "d"), filepath.Join(dir, "m")
	for _, path := range []string{disk, memory} {
		if err := os.WriteFile(path, []byte("content of "+path), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tpl, err := s.Add(t.Context(), shape, parent, disk, memory)
	if err != nil {
		t.Fatal(err)
	}
	return tpl
}

func store(t *testing.T) *Store {
	return NewStore(filepath.Join(t.TempDir(), "templates [it is no pattern"), slog.New(slog.NewTextHandler(t.Output(), nil)))
}

func nobody(context.Context) (map[string]bool, error) { return nil, nil }

// Everything in the shape counts.
func TestKey(t *testing.T) {
	seen := map[string]string{Shape{}.Key(): "nothing"}
	for i := range reflect.TypeFor[Shape]().NumField() {
		var s Shape
		f := reflect.ValueOf(&s).Elem().Field(i)
		name := reflect.TypeFor[Shape]().Field(i).Name
		switch f.Kind() {
		case reflect.String:
			f.SetString("x")
		default:
			f.SetInt(7)
		}
		if other := seen[s.Key()]; (other != "") != (name == "Version") { // Key sets it
			t.Errorf("%s: the key is that of %s", name, other)
		}
		seen[s.Key()] = name
	}
}

func TestFind(t *testing.T) {
	s := store(t)
	if _, err := s.Find(Shape{CPUs: 1}); !errors.Is(err, ErrNotFound) {
		t.Errorf("in an empty store: %v", err)
	}
	one := add(t, s, Shape{CPUs: 1}, "")
	add(t, s, Shape{CPUs: 2}, "")
	newer := add(t, s, Shape{CPUs: 1}, "")
	if got, err := s.Find(Shape{CPUs: 1}); err != nil || got.ID != newer.ID {
		t.Errorf("got %s, %v, want %s", got.ID, err, newer.ID)
	}
	if _, err := s.Find(Shape{CPUs: 3}); !errors.Is(err, ErrNotFound) {
		t.Errorf("another shape: %v", err)
	}
	if err := s.Distrust(newer); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Find(Shape{CPUs: 1}); err != nil || got.ID != one.ID {
		t.Errorf("got %s, %v, want the older one, %s", got.ID, err, one.ID)
	}
}

// What is not as it was made is not used.
func TestFindDamaged(t *testing.T) {
	for name, damage := range map[string]func(Template) error{
		"memory longer":  func(t Template) error { return appendTo(t.Memory()) },
		"memory shorter": func(t Template) error { return os.Truncate(t.Memory(), 3) },
		"memory flipped": func(t Template) error { return os.WriteFile(t.Memory(), flipped(t.Memory()), 0o600) },
		"memory gone":    func(t Template) error { return os.Remove(t.Memory()) },
		"disk longer":    func(t Template) error { return appendTo(t.Disk()) },
		"disk gone":      func(t Template) error { return os.Remove(t.Disk()) },
		"manifest gone":  func(t Template) error { return os.Remove(filepath.Join(t.Dir, manifestName)) },
		"manifest empty": func(t Template) error { return os.WriteFile(filepath.Join(t.Dir, manifestName), nil, 0o600) },
		"manifest of another shape": func(t Template) error {
			return os.WriteFile(filepath.Join(t.Dir, manifestName), fmt.Appendf(nil, `{"key":%q,"cpus":4,"version":%d}`, t.Key, Version), 0o600)
		},
		"manifest of no version": func(t Template) error {
			return os.WriteFile(filepath.Join(t.Dir, manifestName), []byte(`{"key":"`+t.Key+`"}`), 0o600)
		},
	} {
		s := store(t)
		tpl := add(t, s, Shape{CPUs: 1}, "")
		for _, path := range []string{tpl.Memory(), tpl.Disk(), filepath.Join(tpl.Dir, manifestName)} {
			if err := os.Chmod(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := damage(tpl); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Find(Shape{CPUs: 1}); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: found %s, %v", name, got.ID, err)
		}
		if all, err := s.List(); err != nil || strings.HasPrefix(name, "manifest") != (len(all) == 0) {
			t.Errorf("%s: listed %v, %v", name, all, err)
		}
	}
}

// A template of another devvm's is not used, and seen by who looks for room.
func TestAnotherVersion(t *testing.T) {
	var log bytes.Buffer
	s := NewStore(filepath.Join(t.TempDir(), "templates"), slog.New(slog.NewTextHandler(&log, nil)))
	tpl := add(t, s, Shape{CPUs: 1}, "")
	manifest := filepath.Join(tpl.Dir, manifestName)
	was, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	now := bytes.Replace(was, fmt.Appendf(nil, `"version": %d`, Version), []byte(`"version": 1, "gone": true`), 1)
	now = bytes.Replace(now, []byte(`"cpus": 1`), []byte(`"created": "yesterday", "cpus": "one"`), 1)
	if err := errors.Join(os.Chmod(manifest, 0o600), os.WriteFile(manifest, now, 0o600)); err != nil || bytes.Equal(was, now) {
		t.Fatal(err, string(now))
	}
	if got, err := s.Find(Shape{CPUs: 1}); !errors.Is(err, ErrNotFound) {
		t.Errorf("found %s, %v", got.ID, err)
	}
	if all, err := s.List(); err != nil || len(all) != 1 || all[0].Used() == 0 || log.Len() > 0 {
		t.Errorf("listed: %+v, %v, and said: %s", all, err, log.String())
	}
	used := map[string]bool{tpl.ID: true}
	users := func(context.Context) (map[string]bool, error) { return used, nil }
	none := func(Template) bool { return false }
	if freed, err := s.Prune(t.Context(), users, none); err != nil || freed == 0 || file.Used(tpl.Memory()) > 0 || file.Used(tpl.Disk()) == 0 {
		t.Errorf("of one whose disk is used %d bytes were given back, its memory is %d, its disk %d, %v", freed, file.Used(tpl.Memory()), file.Used(tpl.Disk()), err)
	}
	delete(used, tpl.ID)
	if _, err := s.Remove(t.Context(), tpl.ID, users); err != nil {
		t.Error(err)
	}
}

func appendTo(path string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("more")
	return errors.Join(err, f.Close())
}

func flipped(path string) []byte {
	b, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	b[len(b)/2] ^= 1
	return b
}

func TestRemove(t *testing.T) {
	s := store(t)
	tpl := add(t, s, Shape{CPUs: 1}, "")
	if err := s.Use(t.Context(), tpl, func() error { return nil }); err != nil {
		t.Error(err)
	}
	used := func(context.Context) (map[string]bool, error) { return map[string]bool{tpl.ID: true}, nil }
	if _, err := s.Remove(t.Context(), tpl.ID, used); !errors.Is(err, ErrInUse) {
		t.Errorf("in use: %v", err)
	}
	if left, err := s.List(); err != nil || len(left) != 1 || left[0].Warm() {
		t.Errorf("in use: its disk alone must stay: %+v, %v", left, err)
	}
	for _, ref := range []string{"", "nosuch"} {
		if _, err := s.Remove(t.Context(), ref, nobody); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", ref, err)
		}
	}
	if _, err := s.Remove(t.Context(), tpl.ID[:5], nobody); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(tpl.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
	if err := s.Use(t.Context(), tpl, func() error { return nil }); !errors.Is(err, ErrNotFound) {
		t.Errorf("use of a template that is gone: %v", err)
	}
}

func TestPrune(t *testing.T) {
	s := store(t)
	base := add(t, s, Shape{CPUs: 1}, "")
	kept := add(t, s, Shape{CPUs: 3}, "")
	parent := add(t, s, Shape{CPUs: 2}, "")
	layer := add(t, s, Shape{CPUs: 2, Provision: "p"}, parent.ID)
	if err := os.MkdirAll(filepath.Join(s.Dir(), ".making-x"), 0o755); err != nil {
		t.Fatal(err)
	}
	used := func(context.Context) (map[string]bool, error) {
		_, err := os.Stat(layer.Dir)
		return map[string]bool{base.ID: true, parent.ID: err == nil}, nil
	}
	freed, err := s.Prune(t.Context(), used, func(t Template) bool { return t.ID == kept.ID })
	if err != nil || freed == 0 {
		t.Errorf("freed %d, %v", freed, err)
	}
	all, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, tpl := range all {
		got[tpl.ID] = tpl.Warm()
	}
	if want := map[string]bool{base.ID: false, kept.ID: true}; !reflect.DeepEqual(got, want) {
		t.Errorf("left, and warm: %v, want %v", got, want)
	}
	if _, err := os.Stat(filepath.Join(s.Dir(), ".making-x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

// The copy that a fork has left goes to the next one; it is never in the way.
func TestLendKeep(t *testing.T) {
	s := store(t)
	a := add(t, s, Shape{CPUs: 1}, "")
	scratch := filepath.Join(t.TempDir(), "memory")
	if err := s.Lend(a, scratch); err != nil || file.Used(scratch) > 0 {
		t.Errorf("lent what there is not: %v", err)
	}
	for range 2 { // the second replaces the first
		if err := os.WriteFile(scratch, []byte("copy"), 0o600); err != nil {
			t.Fatal(err)
		}
		used := a.Used()
		if err := s.Keep(a, scratch); err != nil || a.Used() < used {
			t.Errorf("not kept: %v", err)
		}
	}
	if err := s.Lend(a, scratch); err != nil || file.Used(scratch) == 0 {
		t.Errorf("not lent: %v", err)
	}
	if err := s.Keep(a, scratch); err != nil {
		t.Fatal(err)
	}
	if err := s.Distrust(a); err != nil || file.Used(a.spare()) > 0 {
		t.Errorf("a template that is not trusted still has a copy: %v", err)
	}
	if err := s.Lend(a, scratch); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(a.Dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(scratch, []byte("copy"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Keep(a, scratch); err != nil || file.Used(scratch) > 0 {
		t.Errorf("the copy of a template that is gone was left: %v", err)
	}
}

// What a killed Add has left goes, unless somebody is at the store.
func TestSweep(t *testing.T) {
	s := store(t)
	tpl := add(t, s, Shape{Image: "i"}, "")
	left := filepath.Join(s.Dir(), makingPrefix+"x")
	if err := os.Mkdir(left, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := s.Use(t.Context(), tpl, func() error { s.Sweep(); return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); err != nil {
		t.Errorf("another process may be adding it: %v", err)
	}
	s.Sweep()
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
	if _, err := s.Find(Shape{Image: "i"}); err != nil {
		t.Error(err)
	}
}
