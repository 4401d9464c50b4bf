package supervisor

import (
	"context"
	"strings"
	"time"

	"github.com/devvm/devvm/pkg/guest"
)

// engineError says that systemd in the VM has given the engine up.
type engineError struct{ words string }

func (e *engineError) Error() string { return "Docker Engine does not start: " + e.words }

// failureCommand prints the last words of an engine that systemd does not start again, and
// nothing of one that it does.
const failureCommand = `systemctl is-failed -q docker.service || exit 0
words=$(journalctl -b -q -o cat -n 1 _SYSTEMD_UNIT=docker.service _TRANSPORT=stdout 2>/dev/null)
echo "${words:-$(systemctl show -p Result --value docker.service)}"`

// maxWords bounds what is kept of the engine's last words, in bytes.
const maxWords = 1000

// patienceFailure is for asking why the engine does not run.
const patienceFailure = 30 * time.Second

// engineFailure asks the VM whether its engine has been given up, and why; "" if not.
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
