package state

import (
	"regexp"
	"strings"
	"testing"
)

func TestIdentify(t *testing.T) {
	for _, tt := range []struct{ dir, name string }{
		{"/home/u/app", "app-"},
		{"/srv/app", "app-"},
		{"/home/u/My Grand  Project!", "my-grand-project-"},
		{"/home/u/проект", "project-"},
		{"/home/u/a\xffb", "a-b-"},
		{"/home/u/" + strings.Repeat("x", 200), strings.Repeat("x", 24) + "-"},
		{"/home/u/-.-", "project-"},
		{"/", "project-"},
	} {
		p := Identify(tt.dir)
		if !strings.HasPrefix(p.Name, tt.name) {
			t.Errorf("identify(%q).Name = %q, want %q…", tt.dir, p.Name, tt.name)
		}
		if !regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*-[0-9a-f]{8}$`).MatchString(p.Name) {
			t.Errorf("identify(%q).Name = %q is no host name", tt.dir, p.Name)
		}
		// RFC 9562: version 8, variant 10.
		if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(p.UUID) {
			t.Errorf("identify(%q).UUID = %q", tt.dir, p.UUID)
		}
		if again := Identify(tt.dir); again != p {
			t.Errorf("identify(%q) is not stable: %v, %v", tt.dir, p, again)
		}
	}
	if Identify("/a/app").Name == Identify("/b/app").Name {
		t.Error("two directories of the same name are one project")
	}
}
