// Package background starts devvm's own long-lived processes: the network
// process and the supervisor of a project.
//
// A process started here has a session of its own (no terminal, no Ctrl-C of
// the command that started it), "/" as its directory and a log file as its
// output. [Start] returns when the new process has called [Ready], or with the
// reason why it never did. A [Place] makes it the only one of its kind, and [Listen] its private sockets. [Kill]
// ends one that does not answer. The package imports of devvm's only lock. Pids are never
// kept: a process is found by its flock.
package background

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// readyEnv names the environment variable with the number of the file
// descriptor on which a background process reports to the one that started it.
const readyEnv = "DEVVM_READY_FD"

// ok is what a process writes when it is ready; anything else is its error.
const ok = "ok"

// Command is a process to start.
type Command struct {
	Path string   // program
	Args []string // without the program's name
	Env  []string // nil: this process's environment
	Log  string   // file that its output is appended to, made with mode 0600
	// Input is its standard input. It must have read that when it is ready.
	Input []byte
}

// patienceReady is how long a process may take to be ready: one that only listens on sockets
// needs milliseconds, on a busy host seconds. One that was stopped never is.
var patienceReady = time.Minute

// Start runs the command in the background and waits until it calls [Ready], for a minute.
// When ctx or that ends first, the process is killed. The error carries what the
// process reported by [Failed] or the end of its output.
func Start(ctx context.Context, c Command) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patienceReady, fmt.Errorf("it was not ready within %s", patienceReady))
	defer cancel()
	log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600) // see Log
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	before, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	ready, report, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer ready.Close()

	// Not CommandContext: the process outlives this one.
	cmd := exec.Command(c.Path, c.Args...) //nolint:noctx // see above
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	if c.Input != nil {
		cmd.Stdin = bytes.NewReader(c.Input)
	}
	cmd.ExtraFiles = []*os.File{report} // becomes descriptor 3
	env := c.Env
	if env == nil {
		env = os.Environ()
	}
	cmd.Env = append(env[:len(env):len(env)], readyEnv+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	report.Close()
	if err != nil {
		return fmt.Errorf("start %s: %w", c.Path, err)
	}
	// This goroutine reaps the process if it dies before we do.
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()

	answer := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(ready)
		answer <- string(b)
	}()
	select {
	case a := <-answer:
		switch {
		case a == ok:
			return nil
		case a != "":
			return errors.New(a)
		}
		_ = cmd.Process.Kill() // it closed the pipe without a word: useless, alive or not
		err := <-exited
		return fmt.Errorf("%s %s ended before it was ready: %w%s", c.Path, strings.Join(c.Args, " "), err, tail(c.Log, before))
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		return fmt.Errorf("%s %s: %w (%w)", c.Path, strings.Join(c.Args, " "), context.Cause(ctx), <-exited)
	}
}

// Ready tells the process that called [Start] that this one is in service. It fails if
// that one waits no more, killed perhaps: this process must end then, because the next
// command may have looked for it before it could be found. Without a process that
// called Start it does nothing.
func Ready() error {
	if err := report(ok); err != nil {
		return fmt.Errorf("no process waits for this one: %w", err)
	}
	return nil
}

// Withhold keeps what this process starts from holding the report to the process that
// called [Start], which would wait for them, too.
func Withhold() {
	if fd, err := strconv.Atoi(os.Getenv(readyEnv)); err == nil {
		syscall.CloseOnExec(fd)
	}
}

// Failed tells the process that called [Start] why this one cannot run.
func Failed(err error) { _ = report(err.Error()) }

// report writes the message and closes the descriptor, once.
func report(message string) error {
	fd, err := strconv.Atoi(os.Getenv(readyEnv))
	if err != nil {
		return nil
	}
	os.Unsetenv(readyEnv)
	f := os.NewFile(uintptr(fd), "ready")
	if f == nil {
		return nil
	}
	defer f.Close()
	_, err = f.WriteString(message)
	return err
}

// tail returns the log's last lines since the offset, on lines of their own.
func tail(path string, from int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 2 << 10
	if end, err := f.Seek(0, io.SeekEnd); err == nil && end-from > most {
		from = end - most
	}
	b := make([]byte, most)
	n, _ := f.ReadAt(b, from)
	text := bytes.TrimSpace(b[:n])
	if len(text) == 0 {
		return ""
	}
	return "\n" + string(text)
}
