package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// shareProbe is what the VM tests run in a VM, from the project's directory: this test
// binary.
//
//	shareprobe watch DIR…              prints what inotify tells of directories
//	shareprobe outside DIR INODE…      as root, speaks to the server of files itself and
//	                                   tries to leave DIR; INODEs are of files outside
//	shareprobe race DIR SECONDS        reads DIR/d/f and makes files in DIR/d as fast as
//	                                   it can; prints each content that it has seen
//	shareprobe hold DIR                lists DIR and all below it until it is gone, and
//	                                   keeps many directories open meanwhile; prints how
//	                                   many it has opened
func shareProbe() int {
	var err error
	switch args := os.Args[1:]; args[0] {
	case "watch":
		err = probeWatch(args[1:])
	case "outside":
		err = probeOutside(args[1], args[2:])
	case "race":
		err = probeRace(args[1], args[2])
	case "hold":
		probeHold(args[1])
	default:
		err = fmt.Errorf("unknown probe %q", args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func probeWatch(dirs []string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if _, err := os.ReadDir(dir); err != nil { // as watchers do
			return err
		}
		if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MODIFY|unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_DELETE); err != nil {
			return err
		}
	}
	fmt.Println("watching")
	words := []struct {
		bit  uint32
		word string
	}{
		{unix.IN_CREATE, "create"},
		{unix.IN_MODIFY, "modify"},
		{unix.IN_CLOSE_WRITE, "close"},
		{unix.IN_MOVED_TO, "to"},
		{unix.IN_MOVED_FROM, "from"},
		{unix.IN_DELETE, "delete"},
	}
	for buf := make([]byte, 64<<10); ; {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			mask, size := binary.NativeEndian.Uint32(b[4:]), unix.SizeofInotifyEvent+binary.NativeEndian.Uint32(b[12:])
			for _, w := range words {
				if mask&w.bit != 0 {
					fmt.Println(w.word, strings.TrimRight(string(b[unix.SizeofInotifyEvent:size]), "\x00"))
				}
			}
			b = b[size:]
		}
	}
}

func probeRace(dir, seconds string) error {
	length, err := strconv.Atoi(seconds)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	made := 0
	for end := time.Now().Add(time.Duration(length) * time.Second); time.Now().Before(end); {
		if b, err := os.ReadFile(filepath.Join(dir, "d", "f")); err == nil {
			seen[string(b)] = true
		}
		if os.WriteFile(filepath.Join(dir, "d", fmt.Sprint("made", made%10)), []byte("x"), 0o600) == nil {
			made++
		}
	}
	for content := range seen {
		fmt.Printf("read %q\n", content)
	}
	fmt.Printf("made %t\n", made > 0)
	return nil
}

func probeHold(top string) {
	held := make([]*os.File, 500)
	opened := 0
	var open func(dir string)
	open = func(dir string) {
		d, err := os.Open(dir)
		if err != nil {
			return
		}
		at := opened % len(held)
		_ = held[at].Close() // nil at first, which is an error
		held[at] = d
		opened++
		names, _ := d.Readdirnames(-1)
		for _, name := range names {
			open(filepath.Join(dir, name))
		}
	}
	for {
		if _, err := os.Stat(top); errors.Is(err, os.ErrNotExist) {
			fmt.Println(opened, "opened")
			return
		}
		open(top)
	}
}

// probe is a client of NFS version 3 (RFC 1813) that asks what no kernel would.
type probe struct {
	conn net.Conn
	xid  uint32
}

const (
	nfsProgram, mountProgram = 100003, 100005

	nfsGetattr, nfsLookup, nfsRead, nfsWrite, nfsCreate, nfsReaddir = 1, 3, 6, 7, 8, 16
)

// opaque is XDR's (RFC 4506).
func opaque(b []byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(b)))
	out = append(out, b...)
	return append(out, make([]byte, -len(b)&3)...)
}

func numbers(n ...uint32) []byte {
	var out []byte
	for _, x := range n {
		out = binary.BigEndian.AppendUint32(out, x)
	}
	return out
}

// ask makes one call and returns its status, and what follows.
func (p *probe) ask(program, procedure uint32, args ...[]byte) (uint32, []byte, error) {
	p.xid++
	who := numbers(0, 0, 0, 0, 0) // root, of a machine without a name
	body := numbers(p.xid, 0, 2, program, 3, procedure, 1)
	body = append(body, opaque(who)...)
	body = append(body, numbers(0, 0)...)
	for _, a := range args {
		body = append(body, a...)
	}
	if _, err := p.conn.Write(append(numbers(1<<31|uint32(len(body))), body...)); err != nil {
		return 0, nil, err
	}
	var mark [4]byte
	if _, err := io.ReadFull(p.conn, mark[:]); err != nil {
		return 0, nil, err
	}
	reply := make([]byte, binary.BigEndian.Uint32(mark[:])&^(1<<31))
	if _, err := io.ReadFull(p.conn, reply); err != nil {
		return 0, nil, err
	}
	if len(reply) < 28 || !bytes.Equal(reply[8:24], make([]byte, 16)) { // accepted, no verifier, success
		return 0, nil, fmt.Errorf("procedure %d: an answer of another kind: %x", procedure, reply)
	}
	return binary.BigEndian.Uint32(reply[24:]), reply[28:], nil
}

func probeOutside(dir string, inodes []string) error {
	var conn net.Conn
	err := errors.New("no port")
	for port := 700; port < 800 && err != nil; port++ { // from any other the VM's rules would refuse it
		d := net.Dialer{LocalAddr: &net.TCPAddr{Port: port}, Timeout: 10 * time.Second}
		conn, err = d.Dial("tcp", "192.0.2.1:2049")
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return err
	}
	p := &probe{conn: conn}
	failures := []error{}
	tried := 0
	// refused notes a call that must not succeed.
	refused := func(what string, program, procedure uint32, args ...[]byte) {
		tried++
		status, _, err := p.ask(program, procedure, args...)
		if err == nil && status == 0 {
			err = errors.New("it is answered")
		} else if err == nil {
			return
		}
		failures = append(failures, fmt.Errorf("%s: %w", what, err))
	}
	handle := func(what string, program, procedure uint32, args ...[]byte) []byte {
		status, rest, err := p.ask(program, procedure, args...)
		if err != nil || status != 0 || len(rest) < 4 {
			failures = append(failures, fmt.Errorf("%s: status %d, %w", what, status, err))
			return nil
		}
		return rest[4 : 4+binary.BigEndian.Uint32(rest)]
	}
	root := handle("mount", mountProgram, 1, opaque([]byte(dir)))
	for _, other := range []string{"/", "/etc", filepath.Dir(dir), dir + "/..", dir + "/../..", "", dir + "/up"} {
		refused("mount "+other, mountProgram, 1, opaque([]byte(other)))
	}
	if up := handle("..", nfsProgram, nfsLookup, opaque(root), opaque([]byte(".."))); !bytes.Equal(up, root) {
		failures = append(failures, errors.New(".. of the root is not the root"))
	}
	for _, name := range []string{"../secret", "d/../../secret", "/etc/passwd", "up/secret", "secretly/"} {
		refused("look up "+name, nfsProgram, nfsLookup, opaque(root), opaque([]byte(name)))
	}
	how := append(numbers(0), numbers(0, 0, 0, 0, 0, 0)...) // unchecked, no attributes
	for _, link := range []string{"up", "secretly"} {
		h := handle(link, nfsProgram, nfsLookup, opaque(root), opaque([]byte(link)))
		refused("read "+link, nfsProgram, nfsRead, opaque(h), numbers(0, 0, 100))
		refused("write "+link, nfsProgram, nfsWrite, opaque(h), numbers(0, 0, 4, 2), opaque([]byte("evil")))
		refused("look up in "+link, nfsProgram, nfsLookup, opaque(h), opaque([]byte("secret")))
		refused("create in "+link, nfsProgram, nfsCreate, opaque(h), opaque([]byte("planted")), how)
		refused("list "+link, nfsProgram, nfsReaddir, opaque(h), numbers(0, 0, 0, 0, 4096))
	}
	// fileID is the inode number that GETATTR tells (RFC 1813, 2.6: fattr3), if it does.
	fileID := func(h []byte) (uint64, bool) {
		status, rest, err := p.ask(nfsProgram, nfsGetattr, opaque(h))
		if err == nil && status == 0 && len(rest) < 60 {
			err = errors.New("an answer that is too short")
		}
		if err != nil {
			failures = append(failures, err)
		}
		if err != nil || status != 0 {
			return 0, false
		}
		return binary.BigEndian.Uint64(rest[52:]), true
	}
	rootID, ok := fileID(root)
	if !ok {
		failures = append(failures, errors.New("the root has no attributes"))
	}
	// Handles of what is outside, made from a true one: RFC 1813 leaves to a server what
	// is in them; this one's have an inode number in the middle, of which 0 is the root.
	inside := handle("f", nfsProgram, nfsLookup, opaque(root), opaque([]byte("f")))
	for _, text := range inodes {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return err
		}
		for i := 0; i+8 <= len(inside); i++ {
			forged := bytes.Clone(inside)
			binary.BigEndian.PutUint64(forged[i:], n)
			tried++
			if id, ok := fileID(forged); ok && id != rootID {
				failures = append(failures, fmt.Errorf("inode %d at %d: it is answered, by inode %d", n, i, id))
			}
		}
	}
	fmt.Printf("%d ways tried\n", tried)
	return errors.Join(failures...)
}
