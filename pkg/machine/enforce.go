package machine

import (
	"context"
	"fmt"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vmnet"
)

// enforce gives a running network process the policy of devvm.toml, unless it has it already.
func (m *Machine) enforce(ctx context.Context, net vmnet.Status) error {
	now, next := net.Policy, m.Config.Policy()
	if now == nil { // the process is of a devvm that had no policies
		now = &egress.Policy{All: true, Offline: net.Offline}
	}
	if now.Equal(next) {
		return nil
	}
	cut, err := vmnet.NewDialer(m.Files.DialSocket()).SetPolicy(ctx, next)
	if err != nil {
		return &ui.Error{
			Msg:  "the network process of the running VM does not accept the policy of " + config.FileName,
			Hint: "restart the VM: devvm down && devvm up",
			Err:  err,
		}
	}
	note := "the VM now reaches: " + next.String()
	if next.Offline {
		note = "the VM is now offline"
	}
	if cut > 0 {
		note += fmt.Sprintf(" (%d connections were cut)", cut)
	}
	m.Progress.Note("%s", note)
	return nil
}
