//go:build vmtest

package vm_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/disk"
	"github.com/devvm/devvm/pkg/sandbox"
	"github.com/devvm/devvm/pkg/vm"
)

// TestVMSandbox asks a VM's QEMU itself, by its monitor, to open what only its user may:
// what QEMU can be told to do, who has taken it over can do. The control is the same QEMU
// without a sandbox. It is asked after each way in which libvirt starts one.
func TestVMSandbox(t *testing.T) {
	o, dir := qemu(t)
	if o.RuntimeDir == "" {
		t.Skip("QEMU runs as a user of its own")
	}
	if _, err := sandbox.Supported(); err != nil {
		t.Skip(err)
	}
	program := os.Getenv("DEVVM_TEST_BINARY")
	if program == "" {
		t.Skip("run this by make vmtest, which sets DEVVM_TEST_BINARY")
	}
	ctx := t.Context()
	spec := tiny(t, dir)
	spec.Disk, spec.Backing = filepath.Join(dir, "overlay.qcow2"), []string{spec.Disk}
	if err := disk.CreateOverlay(ctx, spec.Disk, spec.Backing[0], 0); err != nil {
		t.Fatal(err)
	}
	spec.NetSocket = filepath.Join(dir, "net.sock")
	l, err := net.Listen("unix", spec.NetSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	key := filepath.Join(dir, ".ssh", "id_test")
	other := filepath.Join(dir, "other", "disk.qcow2")
	beside := filepath.Join(dir, "id_ed25519") // the project's own
	for _, path := range []string{key, other, beside} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	daemon, err := filepath.Glob(filepath.Join(o.RuntimeDir, "libvirt", "*-sock"))
	if err != nil || len(daemon) == 0 {
		daemon = []string{spec.NetSocket}
	}

	// try does what needs files and sockets, and returns what QEMU could not do.
	try := func(hv vm.Hypervisor, name string, own string) (denied []string) {
		t.Helper()
		for i, act := range []struct{ what, execute, arguments string }{
			{"key", "blockdev-add", fmt.Sprintf(`{"driver":"file","node-name":"probe","read-only":true,"filename":%q}`, key)},
			{"write key", "blockdev-add", fmt.Sprintf(`{"driver":"file","node-name":"probe","filename":%q}`, key)},
			{"other VM", "blockdev-add", fmt.Sprintf(`{"driver":"file","node-name":"probe","read-only":true,"filename":%q}`, other)},
			{"beside", "blockdev-add", fmt.Sprintf(`{"driver":"file","node-name":"probe","read-only":true,"filename":%q}`, beside)},
			{"own disk", "blockdev-add", fmt.Sprintf(`{"driver":"file","node-name":"probe","read-only":true,"filename":%q}`, own)},
			{"write backing", "chardev-add", fmt.Sprintf(`{"id":"probe","backend":{"type":"file","data":{"append":true,"out":%q}}}`, spec.Backing[0])},
			{"read backing", "blockdev-add", fmt.Sprintf(`{"driver":"file","node-name":"probe","read-only":true,"filename":%q}`, spec.Backing[0])},
			{"new file", "chardev-add", fmt.Sprintf(`{"id":"probe","backend":{"type":"file","data":{"out":%q}}}`, filepath.Join(dir, "new"))},
			{"libvirt", "chardev-add", fmt.Sprintf(`{"id":"probe","backend":{"type":"socket","data":{"server":false,"addr":{"type":"unix","data":{"path":%q}}}}}`, daemon[0])},
		} {
			answer, err := vm.Monitor(ctx, hv, name, fmt.Sprintf(`{"execute":%q,"arguments":%s}`, act.execute, act.arguments))
			if err != nil {
				t.Fatalf("%d %s: %v", i, act.what, err)
			}
			var said struct {
				Error *struct{ Desc string }
			}
			if err := json.Unmarshal([]byte(answer), &said); err != nil {
				t.Fatal(err)
			}
			if said.Error != nil {
				if !strings.Contains(said.Error.Desc, "ermission denied") && !strings.Contains(said.Error.Desc, "not permitted") {
					t.Errorf("%s: %s", act.what, said.Error.Desc)
				}
				denied = append(denied, act.what)
				continue
			}
			undo, argument := "blockdev-del", `{"node-name":"probe"}`
			if act.execute == "chardev-add" {
				undo, argument = "chardev-remove", `{"id":"probe"}`
			}
			if _, err := vm.Monitor(ctx, hv, name, fmt.Sprintf(`{"execute":%q,"arguments":%s}`, undo, argument)); err != nil {
				t.Fatal(err)
			}
		}
		return denied
	}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}

	free := open(t, o)
	must("define", free.Define(ctx, spec))
	must("start", free.Start(ctx, spec.Name))
	if denied := try(free, spec.Name, spec.Disk); len(denied) > 0 {
		t.Errorf("control: QEMU without a sandbox could not: %q", denied)
	}
	must("destroy", free.Destroy(ctx, spec.Name))

	o.Sandbox = vm.Sandbox{Program: program, Dir: filepath.Join(dir, "sandbox")}
	hv := open(t, o)
	if host, err := hv.Host(ctx); err != nil || host.Sandbox == "" {
		t.Fatalf("no sandbox: %s, %v", host.NoSandbox, err)
	}
	const want = `["key" "write key" "other VM" "beside" "write backing" "new file" "libvirt"]`
	check := func(what, name, own string) {
		t.Helper()
		if got := fmt.Sprintf("%q", try(hv, name, own)); got != want {
			t.Errorf("%s: denied %s, want %s", what, got, want)
		}
	}
	must("define", hv.Define(ctx, spec))
	must("start", hv.Start(ctx, spec.Name))
	check("started", spec.Name, spec.Disk)
	must("snapshot", hv.Snapshot(ctx, spec.Name, "s"))
	must("save", hv.Save(ctx, spec.Name))
	must("resume", hv.Start(ctx, spec.Name))
	check("resumed", spec.Name, spec.Disk)
	must("destroy", hv.Destroy(ctx, spec.Name))
	must("revert", hv.Revert(ctx, spec.Name, "s"))
	check("reverted", spec.Name, spec.Disk)
	must("delete the snapshot", hv.DeleteSnapshot(ctx, spec.Name, "s"))
	memory := filepath.Join(dir, "memory")
	must("freeze", hv.Freeze(ctx, spec.Name, memory))

	fork := spec
	fork.Name, fork.UUID = "fork-"+spec.Name, strings.Replace(spec.UUID, "7b1f", "7b1e", 1)
	fork.Disk = filepath.Join(dir, "fork.qcow2")
	must("disk", disk.CreateOverlay(ctx, fork.Disk, spec.Backing[0], 0))
	other = spec.Disk // the fork has not what the VM had that it was forked from
	must("fork", hv.Fork(ctx, fork, memory, filepath.Join(dir, "copy"), func(context.Context) error { return nil }))
	check("forked", fork.Name, fork.Disk)
	must("destroy", hv.Destroy(ctx, fork.Name))
	must("undefine", hv.Undefine(ctx, fork.Name))

	// A network that is not there is said to be the reason.
	l.Close()
	err = hv.Start(ctx, spec.Name)
	if err == nil || !strings.Contains(err.Error(), "connect to the VM's network") {
		t.Errorf("without a network: %v", err)
	}
	must("undefine", hv.Undefine(ctx, spec.Name))
}

// TestConformanceQEMUSandbox is the whole suite in the sandbox.
func TestConformanceQEMUSandbox(t *testing.T) {
	o, dir := qemu(t)
	if _, err := sandbox.Supported(); err != nil || o.RuntimeDir == "" || os.Getenv("DEVVM_TEST_BINARY") == "" {
		t.Skip("no sandbox here")
	}
	o.Sandbox = vm.Sandbox{Program: os.Getenv("DEVVM_TEST_BINARY"), Dir: filepath.Join(dir, "sandbox")}
	conformance(t, o, dir)
}
