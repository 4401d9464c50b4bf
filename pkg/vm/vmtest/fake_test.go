package vmtest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vm/vmtest"
)

func TestConformance(t *testing.T) {
	dir := t.TempDir()
	vmtest.Conformance(t, vmtest.Subject{
		Open: func(context.Context) (vm.Hypervisor, error) {
			return vmtest.NewFake(dir, vmtest.Options{}), nil
		},
		AddForeign: func(t *testing.T, domain string) {
			if err := vmtest.NewFake(dir, vmtest.Options{}).AddForeign(t.Context(), domain); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.Remove(filepath.Join(dir, "domains", domain+".json")) })
		},
	})
}

// TestMain lets the test program stand for another process that uses the fake.
func TestMain(m *testing.M) {
	if dir := os.Getenv("VMTEST_CHURN"); dir != "" {
		churn(dir)
		return
	}
	os.Exit(m.Run())
}

func newSpec(t *testing.T, n int) vm.Spec {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return spec(disk, n)
}

func spec(disk string, n int) vm.Spec {
	return vm.Spec{
		Name: "fake-" + strconv.Itoa(n), UUID: "7b1f0e66-1f0c-4b52-0000-00000000000" + strconv.Itoa(n),
		Project: "/p", CPUs: 1, Memory: 1 << 30, Accel: vm.AccelTCG, Disk: disk,
	}
}

// churn does all that can be done until it is killed.
func churn(dir string) {
	ctx := context.Background()
	s := spec(filepath.Join(dir, "disk"), 1)
	for {
		f := vmtest.NewFake(filepath.Join(dir, "fake"), vmtest.Options{})
		_ = f.Define(ctx, s)
		_ = f.Start(ctx, s.Name)
		_ = f.Save(ctx, s.Name)
		_ = f.Start(ctx, s.Name)
		_ = f.Destroy(ctx, s.Name)
		_ = f.Undefine(ctx, s.Name)
	}
}

func TestSurvivesKill(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "disk"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f := vmtest.NewFake(filepath.Join(dir, "fake"), vmtest.Options{})
	s := spec(filepath.Join(dir, "disk"), 1)
	for n := range 20 {
		cmd := exec.CommandContext(t.Context(), self)
		cmd.Env = append(os.Environ(), "VMTEST_CHURN="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Duration(20+7*n) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()

		if err := f.Define(t.Context(), s); err != nil {
			t.Fatalf("round %d: %v", n, err)
		}
		if err := f.Start(t.Context(), s.Name); err != nil {
			t.Fatalf("round %d: %v", n, err)
		}
		if err := f.Destroy(t.Context(), s.Name); err != nil {
			t.Fatalf("round %d: %v", n, err)
		}
		if err := f.Undefine(t.Context(), s.Name); err != nil {
			t.Fatalf("round %d: %v", n, err)
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for left := startedWith(t, dir); len(left) > 0; left = startedWith(t, dir) {
		if time.Now().After(deadline) {
			t.Fatalf("processes of VMs are left: %v", left)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// startedWith lists the processes that were started with the fake's directory.
func startedWith(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(path string) bool {
		b, _ := os.ReadFile(path)
		return filepath.Base(filepath.Dir(path)) == strconv.Itoa(os.Getpid()) || !bytes.Contains(b, []byte(vmtest.OffEnv+"="+dir))
	})
}

func TestCommand(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	s := newSpec(t, 1)
	f := vmtest.NewFake(dir, vmtest.Options{Command: []string{
		"sh", "-c", `cp "$1" ` + out + `.new; echo "resumed=$` + vmtest.ResumedEnv + `" >>` + out + `.new; mv ` + out + `.new ` + out + `; exec sleep 60`, "vm", "{spec}",
	}})
	if err := f.Define(ctx, s); err != nil {
		t.Fatal(err)
	}
	if err := f.Start(ctx, s.Name); err != nil {
		t.Fatal(err)
	}
	var b []byte
	for len(b) == 0 {
		b, _ = os.ReadFile(out)
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
	}
	var got vm.Spec
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(&got); err != nil || got.Name != s.Name || got.Disk != s.Disk {
		t.Errorf("the process was given %s: %v", b, err)
	}
	if err := f.Destroy(ctx, s.Name); err != nil {
		t.Fatal(err)
	}
}

func TestPowerOff(t *testing.T) {
	ctx := t.Context()
	for want, script := range map[vm.State]string{
		vm.StateStopped: `: >"$` + vmtest.OffEnv + `"`,
		vm.StateCrashed: `exit 0`,
	} {
		f := vmtest.NewFake(t.TempDir(), vmtest.Options{Command: []string{"sh", "-c", script}})
		s := newSpec(t, 1)
		if err := f.Define(ctx, s); err != nil {
			t.Fatal(err)
		}
		if err := f.Start(ctx, s.Name); err != nil {
			t.Fatal(err)
		}
		if d, err := f.Wait(ctx, s.Name, vm.StateStopped, vm.StateCrashed); err != nil || d.State != want {
			t.Errorf("%s: %v (%s), %v", script, d.State, d.Reason, err)
		}
	}
}

func TestShutdown(t *testing.T) {
	ctx := t.Context()
	f := vmtest.NewFake(t.TempDir(), vmtest.Options{})
	s := newSpec(t, 1)
	if err := f.Define(ctx, s); err != nil {
		t.Fatal(err)
	}
	if err := f.Start(ctx, s.Name); err != nil {
		t.Fatal(err)
	}
	if err := f.Shutdown(ctx, s.Name); err != nil {
		t.Fatal(err)
	}
	if d, err := f.Wait(ctx, s.Name, vm.StateStopped, vm.StateCrashed); err != nil || d.State != vm.StateStopped {
		t.Errorf("%v (%s), %v", d.State, d.Reason, err)
	}
}

func TestFail(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	device := filepath.Join(dir, "kvm")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f := vmtest.NewFake(dir, vmtest.Options{Host: vm.Host{KVMListed: true, KVMDevice: device}})
	s := newSpec(t, 1)
	s.Accel = vm.AccelKVM
	if err := f.Define(ctx, s); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		failure string
		want    error
		state   vm.State
	}{
		{vmtest.FailKVM, vm.ErrAccel, vm.StateStopped},
		{vmtest.FailNoSpace, syscall.ENOSPC, vm.StateStopped},
		{vmtest.FailLost, vm.ErrConnectionLost, vm.StateStopped},
		{vmtest.FailHang, context.DeadlineExceeded, vm.StateStopped},
		{"address in use", nil, vm.StateStopped},
		{vmtest.FailLate, vm.ErrConnectionLost, vm.StateRunning},
	} {
		if err := f.Fail(vmtest.OpStart, c.failure); err != nil {
			t.Fatal(err)
		}
		patience := time.Minute
		if c.failure == vmtest.FailHang {
			patience = 100 * time.Millisecond
		}
		short, cancel := context.WithTimeout(ctx, patience)
		err := f.Start(short, s.Name)
		cancel()
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.failure, err)
		}
		if d, err := f.Get(ctx, s.Name); err != nil || d.State != c.state {
			t.Errorf("%s: afterwards %v, %v", c.failure, d.State, err)
		}
	}
	if err := f.Fail(vmtest.OpStart, ""); err != nil {
		t.Fatal(err)
	}
	if err := f.Destroy(ctx, s.Name); err != nil {
		t.Fatal(err)
	}
	if err := f.Start(ctx, s.Name); err != nil {
		t.Error(err)
	}
	if err := f.Destroy(ctx, s.Name); err != nil {
		t.Fatal(err)
	}
}
