package sandbox

import (
	"encoding/binary"
	"os"
	"testing"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The filter, in a machine that runs it as the kernel would. A list of what is denied
// must deny all of another architecture's calls: their numbers mean something else.
func TestFilter(t *testing.T) {
	const x32 = 0x40000000
	self := uint64(os.Getpid())
	denied := uint32(seccomp.ActionErrno) | uint32(unix.EPERM)
	for _, tt := range []struct {
		name  string
		calls Calls
		arch  uint32
		call  uint32
		arg   uint64
		want  uint32
	}{
		{"read", Calls{}, unix.AUDIT_ARCH_X86_64, unix.SYS_READ, 0, uint32(seccomp.ActionAllow)},
		{"read of i386", Calls{}, unix.AUDIT_ARCH_I386, 3, 0, denied},
		{"exec of i386", Calls{Exec: true}, unix.AUDIT_ARCH_I386, 11, 0, denied},
		{"exec of x32", Calls{Exec: true}, unix.AUDIT_ARCH_X86_64, x32 + 520, 0, uint32(seccomp.ActionErrno) | uint32(unix.ENOSYS)},
		{"exec, kept", Calls{}, unix.AUDIT_ARCH_X86_64, unix.SYS_EXECVE, 0, uint32(seccomp.ActionAllow)},
		{"exec", Calls{Exec: true}, unix.AUDIT_ARCH_X86_64, unix.SYS_EXECVE, 0, denied},
		{"thread", Calls{Exec: true}, unix.AUDIT_ARCH_X86_64, unix.SYS_CLONE, unix.CLONE_THREAD | unix.CLONE_VM, uint32(seccomp.ActionAllow)},
		{"process", Calls{Exec: true}, unix.AUDIT_ARCH_X86_64, unix.SYS_CLONE, unix.CLONE_NEWUSER, denied},
		{"signal to itself", Calls{Exec: true}, unix.AUDIT_ARCH_X86_64, unix.SYS_TGKILL, self, uint32(seccomp.ActionAllow)},
		{"signal to another", Calls{Exec: true}, unix.AUDIT_ARCH_X86_64, unix.SYS_TGKILL, self + 1, denied},
		{"signal to a group", Calls{Exec: true}, unix.AUDIT_ARCH_X86_64, unix.SYS_TGKILL, -self, denied},
		{"signal to another, with bits that the kernel drops", Calls{Exec: true}, unix.AUDIT_ARCH_X86_64, unix.SYS_TGKILL, 1<<32 | self + 1, denied},
		{"kill", Calls{}, unix.AUDIT_ARCH_X86_64, unix.SYS_KILL, self, denied},
		{"tkill", Calls{}, unix.AUDIT_ARCH_X86_64, unix.SYS_TKILL, self, denied},
		{"sigqueue", Calls{}, unix.AUDIT_ARCH_X86_64, unix.SYS_RT_SIGQUEUEINFO, self, denied},
		{"sigqueue to a thread", Calls{}, unix.AUDIT_ARCH_X86_64, unix.SYS_RT_TGSIGQUEUEINFO, self, denied},
		{"signal by descriptor", Calls{}, unix.AUDIT_ARCH_X86_64, unix.SYS_PIDFD_SEND_SIGNAL, 3, denied},
		{"ptrace", Calls{}, unix.AUDIT_ARCH_X86_64, unix.SYS_PTRACE, 0, denied},
		{"chmod, kept", Calls{}, unix.AUDIT_ARCH_X86_64, unix.SYS_CHMOD, 0, uint32(seccomp.ActionAllow)},
		{"chmod", Calls{Attributes: true}, unix.AUDIT_ARCH_X86_64, unix.SYS_CHMOD, 0, denied},
		{"IPv4", Calls{}, unix.AUDIT_ARCH_X86_64, unix.SYS_SOCKET, unix.AF_INET, uint32(seccomp.ActionAllow)},
		{"packets", Calls{}, unix.AUDIT_ARCH_X86_64, unix.SYS_SOCKET, unix.AF_PACKET, denied},
		{"IPv4, given up", Calls{Sockets: true}, unix.AUDIT_ARCH_X86_64, unix.SYS_SOCKET, unix.AF_INET, denied},
		{"listen", Calls{Sockets: true}, unix.AUDIT_ARCH_X86_64, unix.SYS_LISTEN, 0, uint32(seccomp.ActionAllow)},
	} {
		program, err := tt.calls.program()
		if err != nil {
			t.Fatal(err)
		}
		machine, err := bpf.NewVM(program)
		if err != nil {
			t.Fatal(err)
		}
		// struct seccomp_data, seccomp(2), each word in the order of the machine.
		data := make([]byte, 64)
		binary.BigEndian.PutUint32(data, tt.call)
		binary.BigEndian.PutUint32(data[4:], tt.arch)
		binary.BigEndian.PutUint32(data[16:], uint32(tt.arg))
		binary.BigEndian.PutUint32(data[20:], uint32(tt.arg>>32))
		got, err := machine.Run(data)
		if err != nil {
			t.Fatal(err)
		}
		if uint32(got) != tt.want {
			t.Errorf("%s: got %#x, want %#x", tt.name, got, tt.want)
		}
	}
}
