package guesttest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/crypto/ssh"
)

// session serves one session channel: a command or a shell. As with sshd, a command without a
// terminal outlives its channel. It ends with ctx.
func (s *Server) session(ctx context.Context, open ssh.NewChannel) {
	ch, reqs, err := open.Accept()
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() { _ = ch.Close() }()

	var (
		env     []string
		tty     *pty
		process processGroup
		running sync.WaitGroup
		started bool
	)
	defer func() {
		if tty != nil {
			process.signal(syscall.SIGHUP)
			cancel()
			tty.close()
		}
		running.Wait()
	}()
	for req := range reqs {
		ok := false
		switch req.Type {
		case "env":
			var m struct{ Name, Value string }
			if ok = ssh.Unmarshal(req.Payload, &m) == nil; ok {
				env = append(env, m.Name+"="+m.Value)
			}
		case "pty-req":
			var m struct {
				Term                         string
				Columns, Rows, Width, Height uint32
				Modes                        string
			}
			if ssh.Unmarshal(req.Payload, &m) == nil && tty == nil {
				if tty, err = openPTY(); err == nil {
					tty.resize(m.Columns, m.Rows)
					env = append(env, "TERM="+m.Term)
					ok = true
				}
			}
		case "window-change":
			var m struct{ Columns, Rows, Width, Height uint32 }
			if ok = ssh.Unmarshal(req.Payload, &m) == nil && tty != nil; ok {
				tty.resize(m.Columns, m.Rows)
			}
		case "signal":
			var m struct{ Name string }
			if ok = ssh.Unmarshal(req.Payload, &m) == nil; ok {
				process.signal(signalByName[m.Name])
			}
		case "exec", "shell":
			var m struct{ Line string }
			if started || req.Type != "shell" && ssh.Unmarshal(req.Payload, &m) != nil {
				break
			}
			started = true
			// Reply before the command can end: a closed channel takes no replies.
			_ = req.Reply(true, nil)
			running.Go(func() {
				s.exec(ctx, ch, m.Line, env, tty, &process)
				_ = ch.Close()
			})
			continue
		}
		_ = req.Reply(ok, nil)
	}
}

// changesHost matches programs that would change this host, which is where commands run.
var changesHost = regexp.MustCompile(`\b(systemctl|reboot|fstrim|modprobe|iptables-restore)\b`)

// exec runs a command line, or a shell if it is empty, and reports how it ended.
func (s *Server) exec(ctx context.Context, ch ssh.Channel, line string, env []string, tty *pty, process *processGroup) {
	if strings.Contains(line, "poweroff") {
		if s.opts.OnPoweroff != nil {
			s.opts.OnPoweroff()
		}
		exitStatus(ch, 0)
		return
	}
	if s.opts.Intercept != nil {
		if code, handled := s.opts.Intercept(line); handled {
			exitStatus(ch, code)
			return
		}
	}
	if s.opts.Rewrite != nil {
		line = s.opts.Rewrite(line)
	}
	// Keep the reserve of the guest's disk in the scratch directory, and small.
	line = strings.NewReplacer("/var/lib/devvm/reserve", filepath.Join(s.opts.Dir, "reserve"), "fallocate -l 32M", "fallocate -l 32K").Replace(line)
	if changesHost.MatchString(line) {
		exitStatus(ch, 127)
		return
	}
	args := []string{"-l"}
	if line != "" {
		args = []string{"-c", line}
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", args...)
	cmd.Dir = s.home
	cmd.Env = append([]string{
		"HOME=" + s.home,
		"TMPDIR=" + filepath.Join(s.opts.Dir, "tmp"),
		"PATH=" + os.Getenv("PATH"),
		"USER=root", "LOGNAME=root", "SHELL=/bin/sh",
	}, env...)
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := run(ch, cmd, tty, process); err != nil {
		s.log.Debug("command", "line", line, "err", err)
	}
	if cmd.ProcessState == nil {
		exitStatus(ch, 127)
		return
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		name := "TERM"
		for n, sig := range signalByName {
			if sig == status.Signal() {
				name = n
			}
		}
		_, _ = ch.SendRequest("exit-signal", false, ssh.Marshal(struct {
			Signal      string
			Core        bool
			Error, Lang string
		}{Signal: name}))
		return
	}
	exitStatus(ch, status.ExitStatus())
}

// run starts the command and returns when it has ended and its output has been passed on.
func run(ch ssh.Channel, cmd *exec.Cmd, tty *pty, process *processGroup) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stdin io.WriteCloser
	var outputs sync.WaitGroup
	if tty != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty.terminal, tty.terminal, tty.terminal
	} else {
		cmd.Stdout, cmd.Stderr = ch, ch.Stderr()
		var err error
		if stdin, err = cmd.StdinPipe(); err != nil {
			return err
		}
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	process.set(cmd.Process.Pid)
	if tty != nil {
		_ = tty.terminal.Close()
		outputs.Go(func() { _, _ = copyBuffer(ch, tty.control) }) // ends with EIO
		go func() { _, _ = copyBuffer(tty.control, ch) }()
	} else {
		go func() {
			_, _ = copyBuffer(stdin, ch)
			_ = stdin.Close()
		}()
	}
	err := cmd.Wait()
	process.set(0)
	outputs.Wait()
	return err
}

func exitStatus(ch ssh.Channel, code int) {
	_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(code)}))
}

// processGroup is the group of the running command, if there is one.
type processGroup struct {
	mu  sync.Mutex
	pid int
}

func (p *processGroup) set(pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid = pid
}

func (p *processGroup) signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pid > 0 && sig > 0 {
		_ = syscall.Kill(-p.pid, sig)
	}
}

var signalByName = map[string]syscall.Signal{
	"ABRT": syscall.SIGABRT, "ALRM": syscall.SIGALRM, "FPE": syscall.SIGFPE,
	"HUP": syscall.SIGHUP, "ILL": syscall.SIGILL, "INT": syscall.SIGINT,
	"KILL": syscall.SIGKILL, "PIPE": syscall.SIGPIPE, "QUIT": syscall.SIGQUIT,
	"SEGV": syscall.SIGSEGV, "TERM": syscall.SIGTERM, "USR1": syscall.SIGUSR1,
	"USR2": syscall.SIGUSR2,
}

// copyBuffer is io.Copy without its shortcuts, which differ by type.
func copyBuffer(dst io.Writer, src io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 32<<10))
}

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}
