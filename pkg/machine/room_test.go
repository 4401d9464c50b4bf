package machine

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/devvm/devvm/pkg/vm"
)

func TestCheckRoom(t *testing.T) {
	dir := t.TempDir()
	// libvirt makes the directory for saved memory when it needs it.
	for _, d := range []string{dir, filepath.Join(dir, "not", "yet")} {
		if err := new(Env).checkRoom(d, 1, "nothing"); err != nil {
			t.Errorf("%s: %v", d, err)
		}
		err := new(Env).checkRoom(d, math.MaxInt64, "the VM's memory")
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "the VM's memory needs") {
			t.Errorf("%s: %v", d, err)
		}
	}
}

// What a VM has never touched is not saved.
func TestCheckRoomForMemory(t *testing.T) {
	dir := t.TempDir()
	running := vm.Domain{Memory: math.MaxInt64 / 2, PID: os.Getpid()}
	if err := new(Env).CheckRoomForMemory(dir, running); err != nil {
		t.Error(err)
	}
	running.PID = 0
	if err := new(Env).CheckRoomForMemory(dir, running); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
}
