package project

import (
	"errors"
	"testing"

	"github.com/devvm/devvm/pkg/vm"
)

// A kernel that does not come up is KVM's fault, where there is KVM, and a reason to do
// without; under emulation it is one to start again.
func TestNoKernel(t *testing.T) {
	for _, accel := range []vm.Accel{vm.AccelKVM, vm.AccelTCG} {
		b := boot{accel: accel}
		err := b.noKernel()
		if !errors.Is(err, errNoKernel) || errors.Is(err, vm.ErrAccel) != (accel == vm.AccelKVM) {
			t.Errorf("%s: %v", accel, err)
		}
		if b.patienceKernel() >= patienceTCG || accel == vm.AccelKVM && b.patienceKernel() >= patienceKVM {
			t.Errorf("%s: the VM is given up before its kernel is", accel)
		}
	}
}
