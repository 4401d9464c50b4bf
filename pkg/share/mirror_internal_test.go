package share

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
	"github.com/devvm/devvm/pkg/share/internal/watch"
)

// mirroring is an export of a new directory whose changes are told.
func mirroring(t *testing.T) (*Server, *export, string) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Exports: []Export{{Source: dir, Target: "/t", Writable: true}}, Events: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, s.exports[0], dir
}

// make has the server make a file for the VM.
func (e *export) make(t *testing.T, s *Server, name string) {
	t.Helper()
	root, err := e.openRoot()
	if err != nil {
		t.Fatal(err)
	}
	defer root.close()
	s.create(t.Context(), &call{}, &nfs3.Create3args{
		Where: nfs3.Diropargs3{Dir: e.handle(root.n), Name: []byte(name)},
		How: &nfs3.Createhow3_GUARDED{Guarded: nfs3.Sattr3{
			Atime: &nfs3.SetTime_default{}, Mtime: &nfs3.SetTime_default{},
		}},
	}, new(reply))
}

// told returns what the VM is to be told.
func (e *export) told() []watch.Event {
	e.mirror().mu.Lock()
	defer e.mirror().mu.Unlock()
	events := e.mirror().pending
	e.mirror().pending = nil
	return events
}

// The kernel tells of a change before the server, which waits for a CPU, has noted that
// it has made it for the VM: that is still no news to the VM.
func TestNoticeWaitsForCallsUnderWay(t *testing.T) {
	s, e, _ := mirroring(t)
	end := s.underway.begin()
	noticed := make(chan struct{})
	began := make(chan struct{})
	go func() {
		defer close(noticed)
		close(began)
		e.mirror().notice(s, []watch.Event{{Op: watch.Create, Path: "f"}})
	}()
	<-began
	select {
	case <-noticed:
		t.Error("notice does not wait for a call under way")
	case <-time.After(20 * time.Millisecond):
	}
	e.make(t, s, "f")
	end()
	<-noticed
	if got := e.told(); len(got) > 0 {
		t.Errorf("the VM is told what it has done: %v", got)
	}
	// A call that never ends holds nothing up for ever.
	defer s.underway.begin()()
	s.underway.wait(time.Millisecond)
}

// Closing a file that the VM has written long ago is no news to it.
func TestLateClose(t *testing.T) {
	s, e, _ := mirroring(t)
	e.make(t, s, "f")
	e.mirror().mu.Lock()
	for at, d := range e.mirror().done.young {
		d.at = d.at.Add(-2 * deedAge)
		e.mirror().done.put(at, d)
	}
	e.mirror().mu.Unlock()
	e.mirror().notice(s, []watch.Event{{Op: watch.Modify, Path: "f"}})
	if got := e.told(); len(got) > 0 {
		t.Errorf("the VM is told what it has done: %v", got)
	}
}

// What the host does to a name right after the VM is news, all of it.
func TestHostAfterVM(t *testing.T) {
	s, e, dir := mirroring(t)
	e.make(t, s, "f")
	root, err := e.openRoot()
	if err != nil {
		t.Fatal(err)
	}
	defer root.close()
	s.remove(t.Context(), &call{}, &nfs3.Diropargs3{Dir: e.handle(root.n), Name: []byte("f")}, new(reply))
	e.mirror().notice(s, []watch.Event{{Op: watch.Remove, Path: "f"}})
	if got := e.told(); len(got) > 0 {
		t.Errorf("the VM is told what it has done: %v", got)
	}
	name := filepath.Join(dir, "f")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	e.mirror().notice(s, []watch.Event{{Op: watch.Create, Path: "f"}})
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	e.mirror().notice(s, []watch.Event{{Op: watch.Remove, Path: "f"}})
	if got := e.told(); len(got) != 2 {
		t.Errorf("the VM is told %v, want what was made and what was removed", got)
	}
}
