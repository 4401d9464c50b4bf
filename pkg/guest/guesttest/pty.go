package guesttest

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// pty is a pseudo terminal: the server's side and the command's.
type pty struct {
	control, terminal *os.File
	once              sync.Once
}

func openPTY() (*pty, error) {
	control, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	terminal, err := openTerminal(control)
	if err != nil {
		_ = control.Close()
		return nil, err
	}
	return &pty{control: control, terminal: terminal}, nil
}

func openTerminal(control *os.File) (*os.File, error) {
	raw, err := control.SyscallConn()
	if err != nil {
		return nil, err
	}
	var number int
	var ioctlErr error
	err = raw.Control(func(fd uintptr) {
		if ioctlErr = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); ioctlErr == nil {
			number, ioctlErr = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err == nil {
		err = ioctlErr
	}
	if err != nil {
		return nil, fmt.Errorf("make a terminal: %w", err)
	}
	return os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
}

func (p *pty) resize(columns, rows uint32) {
	raw, err := p.control.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(columns), Row: uint16(rows)})
	})
}

// close closes both sides. A nil pty does nothing.
func (p *pty) close() {
	if p == nil {
		return
	}
	p.once.Do(func() {
		_ = p.control.Close()
		_ = p.terminal.Close()
	})
}
