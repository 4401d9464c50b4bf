package supervisor

import (
	"context"
	"strings"
	"time"

	"github.com/devvm/devvm/pkg/guest"
)

// engineError says that systemd in the VM no longer restarts the engine.
type engineError struct{ words string }

func (e *engineError) Error() string { return "Docker Engine does not start: " + e.words }

// failureCommand prints the last messages of an engine that systemd no longer restarts, and
// nothing if it still does.
const failureCommand = `systemctl is-failed -q docker.service || exit 0
words=$(journalctl -b -q -o cat -n 1 _SYSTEMD_UNIT=docker.service _TRANSPORT=stdout 2>/dev/null)
echo "${words:-$(systemctl show -p Result --value docker.service)}"`

// maxWords is how many bytes of the engine's last messages are kept.
const maxWords = 1000

// patienceFailure is how long to wait for the reason why the engine does not run.
const patienceFailure = 30 * time.Second

// engineFailure asks the VM why systemd no longer restarts its engine, "" if it still does.
func engineFailure(ctx context.Context, link *guest.Client) string {
	ctx, cancel := context.WithTimeout(ctx, patienceFailure)
	defer cancel()
	var said excerpt
	code, err := link.Run(ctx, guest.Command{Argv: []string{"sh", "-c", failureCommand}, Stdout: &said})
	if err != nil || code != 0 {
		return ""
	}
	words := strings.Join(strings.Fields(said.String()), " ")
	return strings.ToValidUTF8(words[:min(len(words), maxWords)], "")
}
