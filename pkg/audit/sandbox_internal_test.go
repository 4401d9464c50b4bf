package audit

import (
	"strings"
	"testing"
)

// A VM's process without a system call filter is in no sandbox of devvm's. A QEMU with one
// filter has only its own.
func TestSandboxes(t *testing.T) {
	for _, tt := range []struct {
		name string
		all  []Process
		want string
	}{
		{"nothing runs", nil, ""},
		{"nothing that is asked about", []Process{{Kind: KindCommand}, {Kind: KindLibvirt}}, ""},
		{"all", []Process{{Kind: KindNet, Filters: 1}, {Kind: KindSupervisor, Filters: 1}, {Kind: KindOwner, Filters: 1}, {Kind: KindQEMU, UID: 1, Filters: 2}}, "ok 3 processes of VMs, each in a sandbox"},
		{"QEMU with its own alone", []Process{{Kind: KindNet, Filters: 1}, {PID: 7, Kind: KindQEMU, UID: 1, Filters: 1, Project: "app"}}, "note 1 process of VMs without a sandbox qemu (pid 7) of app is in none"},
		{"no filter for the one outside", []Process{{Kind: KindSupervisor, Filters: 1}, {PID: 8, Kind: KindOwner, Project: "app"}}, "note 1 process of VMs without a sandbox owner (pid 8) of app is in none"},
		{"none", []Process{{Kind: KindNet}, {Kind: KindSupervisor}}, "note 2 processes of VMs without a sandbox network (pid 0) is in none supervisor (pid 0) is in none"},
	} {
		got := ""
		for _, f := range sandboxes(tt.all) {
			got = strings.Join(append([]string{string(f.Status), f.What}, f.Details...), " ")
		}
		if got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
