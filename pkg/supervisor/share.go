package supervisor

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/devvm/devvm/pkg/background"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/shell"
)

// Share is what the VM has of the host's files.
type Share struct {
	Socket     string     // unix socket to serve them on; the VM's network leads to it
	Address    netip.Addr // where that is in the VM's network
	Exports    []share.Export
	Durable    bool     // see share.Options
	Ignore     []string // see share.Options
	Watches    string   // see share.Options
	Owners     string   // see share.Options
	HadExports bool     // the VM may have been told of exports that are not there any more
	// ByFirmware says that the VM hears from its firmware what to mount, in the words of
	// Credential, and does so whenever it starts.
	ByFirmware bool
}

// Credential tells a VM by its firmware what to mount; see images/debian-13.
func (h Share) Credential() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s\n", fmt.Sprintf(mountOptions+","+exactWrites, share.Port, h.Address), h.Address)
	for _, e := range h.Exports {
		fmt.Fprintf(&b, "%s %s\n", mode(e), e.Target)
	}
	return []byte(b.String())
}

func mode(e share.Export) string {
	if e.Writable {
		return "rw"
	}
	return "ro"
}

// serveShare serves the VM's directories until ctx ends.
func (s *supervisor) serveShare(ctx context.Context, owned *sync.WaitGroup, stop func()) error {
	if len(s.Share.Exports) == 0 {
		return nil
	}
	server, err := share.New(share.Options{
		Exports: s.Share.Exports, Durable: s.Share.Durable,
		Events: true, Ignore: s.Share.Ignore, Watches: s.Share.Watches, Owners: s.Share.Owners, Log: s.Log,
	})
	if err != nil {
		return err
	}
	l, err := background.Listen(s.Share.Socket, nil)
	if err != nil {
		_ = server.Close()
		return fmt.Errorf("share.sock: %w", err)
	}
	s.files = server
	owned.Go(func() {
		defer server.Close()
		if err := server.Serve(ctx, l); err != nil {
			s.Log.Error("share.sock ended", "err", err)
			stop()
		}
	})
	return nil
}

// patienceSettle is how long a connection into the VM waits for files: a busy VM, or a
// flood of changes, does not stop it.
const patienceSettle = 200 * time.Millisecond

// catchUpFiles lets the VM's kernel hear of what the host has changed before a connection
// into the VM is passed on: what was done before it is seen behind it.
func (s *supervisor) catchUpFiles(ctx context.Context) {
	if s.files == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patienceSettle)
	defer cancel()
	s.files.CatchUp(ctx)
}

// mountOptions are of each mount, for the port and the address of the server. Debian's
// mount needs no helper for it. The kernel finds all that it needs in the options, without
// rpcbind; it waits for a server that is gone for ever; it asks for names anew after a
// second. What it knows of files' sizes and times it keeps for ten: a change of the host's
// is told to it (share.Server.Mirror), where watchers are told, and to open a file is to
// ask. A git status of many files asks for each of them otherwise.
const mountOptions = "vers=3,proto=tcp,hard,nolock,noacl,nconnect=2,acregmin=10,acregmax=10,acdirmin=1,acdirmax=1,port=%[1]d,mountport=%[1]d,mountproto=tcp,mountvers=3,addr=%[2]s"

// exactWrites makes the VM's kernel send what a program wrote, instead of the whole page around it,
// which has NUL or old bytes where the host has written since. Debian 13's kernel has the option.
// Kernels before 6.10 do not, and refuse the mount.
const exactWrites = "noalignwrite"

// patienceMount is how long all mounts of a VM may take, which may be emulated.
const patienceMount = 30 * time.Second

// patienceTold is how long a fork may take to mount by itself before it is told to.
const patienceTold = 5 * time.Second

// toldCommand mounts in a VM what its credential says and what is not mounted yet.
const toldCommand = "/usr/lib/devvm/share"

// A VM without credentials mounts by a script that is stored in it, because it needs its directories
// before its engine starts containers again, which is before there is a link.
const mountCommand = `set -eu
mkdir -p /var/lib/devvm
cat >/var/lib/devvm/share.new
if ! cmp -s /var/lib/devvm/share.new /var/lib/devvm/share; then
	mv /var/lib/devvm/share.new /var/lib/devvm/share
	cat >/etc/systemd/system/devvm-share.service <<'END'
[Unit]
Description=Directories of the host
DefaultDependencies=no
After=devvm-setup.service network-online.target
Before=docker.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
TimeoutStartSec=60
ExecStart=/bin/sh -c 'until sh /var/lib/devvm/share; do sleep 0.2; done'
END
	mkdir -p /etc/systemd/system/docker.service.wants
	ln -sf ../devvm-share.service /etc/systemd/system/docker.service.wants/
fi
exec sh /var/lib/devvm/share`

// unmountCommand undoes mountCommand. A boot may be waiting for the mounts.
const unmountCommand = `systemctl stop devvm-share.service 2>/dev/null || :
rm -f /var/lib/devvm/share /etc/systemd/system/devvm-share.service /etc/systemd/system/docker.service.wants/devvm-share.service`

// mountScript begins the script. It drops packets of containers to the server: they pass
// PREROUTING, unlike those of the kernel itself. It also drops those of processes in the VM's own
// network that are not root's. The kernel's sockets are root's.
const mountScript = `# Written by devvm: what this VM has of its host.
set -eu
exec 9>/run/devvm-share.lock
flock 9
if [ ! -e /run/devvm-share ]; then
	iptables-restore -w -n <<-END
		*raw
		-A PREROUTING -d %[1]s -p tcp --dport %[2]d -j DROP
		-A OUTPUT -d %[1]s -p tcp --dport %[2]d -m owner ! --uid-owner 0 -j DROP
		COMMIT
	END
	: >/run/devvm-share
fi
options=%[3]s
share() {
	! mountpoint -q -- "$2" || return 0
	mkdir -p -- "$2"
	mount -i -t nfs -o "$options,%[4]s,$1" -- "%[1]s:$2" "$2" 2>/dev/null ||
		mount -i -t nfs -o "$options,$1" -- "%[1]s:$2" "$2"
}
`

// script is the script that mounts in the VM.
func (h Share) script() string {
	var b strings.Builder
	fmt.Fprintf(&b, mountScript, h.Address, share.Port, fmt.Sprintf(mountOptions, share.Port, h.Address), exactWrites)
	for _, e := range h.Exports {
		fmt.Fprintf(&b, "share %s %s\n", mode(e), shell.Quote(e.Target))
	}
	return b.String()
}

// mountShares makes sure that the VM has mounted its directories.
func (s *supervisor) mountShares(ctx context.Context, link *guest.Client) error {
	var said excerpt
	command := guest.Command{Argv: []string{"sh", "-c", mountCommand}, Stdin: strings.NewReader(s.Share.script()), Stdout: &said, Stderr: &said}
	switch {
	case s.Share.ByFirmware && len(s.Share.Exports) == 0:
		return nil
	case s.Share.ByFirmware:
		patience := time.Duration(0) // it has said so, or may never
		if s.Forked && s.links == 0 {
			patience = patienceTold
		}
		waiting, done := context.WithTimeout(ctx, patience)
		err := s.files.Mounted(waiting)
		done()
		if err == nil {
			return nil
		}
		command = guest.Command{Argv: []string{toldCommand}, Stdout: &said, Stderr: &said}
	case len(s.Share.Exports) == 0 && !s.Share.HadExports:
		return nil
	case len(s.Share.Exports) == 0:
		command.Argv[2] = unmountCommand
	}
	ctx, cancel := context.WithTimeout(ctx, patienceMount)
	defer cancel()
	code, err := link.Run(ctx, command)
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d: %s", code, strings.TrimSpace(said.String()))
	}
	if err != nil {
		return fmt.Errorf("mount the host's directories in the VM: %w", err)
	}
	return nil
}

// mirrorAgain is how long after the end of an agent the next one is started.
const mirrorAgain = 30 * time.Second

// mirror tells watchers in the VM what the host changes, until ctx ends.
func (s *supervisor) mirror(ctx context.Context, link *guest.Client) {
	if s.files == nil {
		return
	}
	for ctx.Err() == nil {
		err := s.files.Mirror(ctx, func(ctx context.Context, argv []string, stdin io.Reader, stdout io.Writer) error {
			var said excerpt
			code, err := link.Run(ctx, guest.Command{Argv: argv, Stdin: stdin, Stdout: stdout, Stderr: &said})
			if err == nil {
				err = fmt.Errorf("exit code %d: %s", code, strings.TrimSpace(said.String()))
			}
			return err
		})
		if err != nil && ctx.Err() == nil {
			s.Log.Warn("watchers in the VM do not hear of the host's changes", "err", err)
		}
		timer := time.NewTimer(mirrorAgain)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// maxExcerpt is more bytes than any of devvm's commands in the VM prints.
const maxExcerpt = 64 << 10

// excerpt keeps the beginning of what a command in the VM prints: root there can make it print
// without end.
type excerpt struct{ strings.Builder }

// Write implements io.Writer.
func (e *excerpt) Write(b []byte) (int, error) {
	_, _ = e.Builder.Write(b[:min(len(b), maxExcerpt-e.Len())])
	return len(b), nil
}
