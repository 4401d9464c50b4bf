package sandbox

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"unsafe"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Calls are system calls to give up.
//
// They are a list of what is denied and not of what is allowed. What Go's runtime, the C
// library and QEMU call changes with their releases and with the kernel; a call that a
// list of allowed ones lacks breaks a VM years later, in a place that no test has been to.
// What an intruder needs to get further is known, and each new way there is a new call.
// Denied calls fail with EPERM, as they would for want of a privilege, and the kernel's
// audit log has them: programs try calls to find out whether they work, and must not die
// of that.
type Calls struct {
	// Exec gives up to start programs and processes; threads are none. The process then is the
	// one that it is for good, and gives up signals to all others as well. Landlock keeps those
	// from it, too, but only since ABI 6.
	Exec bool
	// Attributes gives up to change modes, owners, times and extended attributes of
	// files, which Landlock lets pass, and to cut files by name, which it does before
	// ABI 3.
	Attributes bool
	// Sockets gives up all sockets but those that are open, and what listens of these.
	Sockets bool
}

// Those that nobody here needs: they reach other processes, change what this one sees, or
// are known for the holes that they have been.
var (
	neverCalls = []string{
		"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "kill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo",
		"pidfd_open", "pidfd_getfd", "pidfd_send_signal",
		"mount", "umount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
		"unshare", "setns", "open_by_handle_at", "name_to_handle_at",
		"io_uring_setup", "io_uring_enter", "io_uring_register",
		"bpf", "perf_event_open", "userfaultfd", "add_key", "request_key", "keyctl",
		"init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot",
		"swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "syslog", "fanotify_init", "fanotify_mark",
		"iopl", "ioperm", "modify_ldt", "personality", "uselib", "ustat", "sysfs", "_sysctl", "nfsservctl", "vhangup", "lookup_dcookie",
		"settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "sethostname", "setdomainname",
		"mknod", "memfd_secret", "vmsplice",
	}
	execCalls       = []string{"execve", "execveat", "fork", "vfork"}
	attributesCalls = []string{
		"chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat",
		"setxattr", "lsetxattr", "fsetxattr", "setxattrat", "removexattr", "lremovexattr", "fremovexattr", "removexattrat",
		"utime", "utimes", "futimesat", "utimensat", "truncate", "file_setattr",
	}
	socketsCalls = []string{"socket", "socketpair", "connect", "bind"}
)

// families are the kinds of sockets that a process may make that makes any.
var families = []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// Deny gives up system calls, for all threads of this process and what it starts.
func Deny(c Calls) error {
	program, err := c.program()
	if err == nil {
		err = load(program)
	}
	if err != nil {
		return fmt.Errorf("give up system calls: %w", err)
	}
	return nil
}

// program is the filter.
func (c Calls) program() ([]bpf.Instruction, error) {
	table, err := arch.GetInfo("")
	if err != nil {
		return nil, err
	}
	names := slices.Clone(neverCalls)
	var some []seccomp.NameWithConditions
	if c.Exec {
		names = append(names, execCalls...)
		some = append(some, seccomp.NameWithConditions{Name: "clone", Conditions: seccomp.ArgumentConditions{
			{Argument: 0, Operation: seccomp.BitsNotSet, Value: unix.CLONE_THREAD},
		}}, seccomp.NameWithConditions{Name: "tgkill", Conditions: seccomp.ArgumentConditions{ // which Go's scheduler needs
			{Argument: 0, Operation: seccomp.NotEqual, Value: uint64(os.Getpid())},
		}})
	}
	if c.Attributes {
		names = append(names, attributesCalls...)
	}
	if c.Sockets {
		names = append(names, socketsCalls...)
	} else {
		other := seccomp.NameWithConditions{Name: "socket"}
		for _, family := range families {
			other.Conditions = append(other.Conditions, seccomp.Condition{Argument: 0, Operation: seccomp.NotEqual, Value: family})
		}
		some = append(some, other)
	}
	names = slices.DeleteFunc(names, func(name string) bool { // of another architecture, or newer than the table
		_, known := table.SyscallNames[name]
		return !known
	})
	policy := seccomp.Policy{
		DefaultAction: seccomp.ActionAllow,
		Syscalls:      []seccomp.SyscallGroup{{Names: names, NamesWithCondtions: some, Action: seccomp.ActionErrno}},
	}
	if c.Exec {
		// A filter cannot see what clone3 is asked for. The C library of a build with cgo makes its
		// threads by clone instead only where there seems to be no clone3.
		policy.Syscalls = append(policy.Syscalls, seccomp.SyscallGroup{Names: []string{"clone3"}, Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS)})
	}
	program, err := policy.Assemble()
	if err != nil {
		return nil, err
	}
	return append(foreign(table), program...), nil
}

// foreign denies the calls of other architectures that the processor has, which are
// other numbers: int 0x80 on x86-64. The library gives them the default, to be allowed.
func foreign(native *arch.Info) []bpf.Instruction {
	const offset = 4 // of arch in struct seccomp_data
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: offset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(native.ID), SkipTrue: 1},
		bpf.RetConstant{Val: uint32(seccomp.ActionErrno) | uint32(unix.EPERM)},
	}
}

// load gives all threads the filter. The library's own way takes a thread that it could
// not give to for success.
func load(program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	runtime.LockOSThread() // it goes from this thread to all others
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_NO_NEW_PRIVS): %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_LOG, uintptr(unsafe.Pointer(&prog)))
	switch {
	case errno != 0:
		return fmt.Errorf("seccomp: %w", errno)
	case thread != 0:
		return fmt.Errorf("seccomp: thread %d has another filter", thread)
	}
	return nil
}
