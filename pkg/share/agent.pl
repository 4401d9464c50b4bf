# devvm's agent in the VM: does what the host has done already, so that the VM's kernel
# tells those who watch. Arguments: a user that the server knows it by, the numbers of
# the system calls utimensat, fadvise64, statx, inotify_init1 and inotify_add_watch, a
# directory. On standard input: what to do, each word ended by a NUL. The server carries
# out nothing of it.
use strict;
use Fcntl qw(:DEFAULT :flock);
my ($uid, $utimensat, $fadvise64, $statx, $init, $add, $top) = @ARGV;
chdir $top or die "$top: $!\n";
umask 0;
$( = $uid;
$) = "$uid $uid";
($<, $>) = ($uid, $uid);
$> == $uid or die "cannot become $uid: $!\n";
$/ = "\0";
$| = 1;

sub word { my $w = <STDIN>; exit 0 unless defined $w; chomp $w; $w }

# Only the time of the last change, "now": that is a change of the content to watchers.
my $now = pack "q4", 0, (1 << 30) - 2, 0, (1 << 30) - 1;

sub touch {
	my ($name, $create) = @_;
	my $how = O_WRONLY | O_NOFOLLOW | O_NONBLOCK;
	my $f;
	if ($create && sysopen($f, $name, $how | O_CREAT | O_EXCL, 0666) || sysopen($f, $name, $how)) {
		syscall($utimensat + 0, fileno($f) + 0, 0, $now, 0);
		close $f;
	} else {
		syscall($utimensat + 0, -100, $name, $now, 0x100);
	}
}

# The kernel asks the server anew, and not its own memory, after POSIX_FADV_DONTNEED.
sub list {
	opendir my $d, word() or return;
	syscall($fadvise64 + 0, fileno($d) + 0, 0, 0, 4);
	1 while defined readdir $d;
}

# The kernel asks the server anew (AT_STATX_FORCE_SYNC).
sub fresh {
	my ($name, $b) = (word(), "\0" x 256);
	syscall($statx + 0, -100, $name, 0x2100, 0x7ff, $b);
}

# To take a lock, the kernel first sends what was written, and asks for the file's size
# again before the next write (do_setlk in Linux's fs/nfs/file.c). The lock is shared and
# gone at once. One process follows one file, for a minute; eight do at most.
my ($me, %follower) = $$;
$SIG{CHLD} = "IGNORE";
END { kill TERM => map { $_->{pid} } values %follower if $$ == $me }
sub follow {
	my $name = word();
	delete @follower{grep { $follower{$_}{until} <= time } keys %follower};
	return if $follower{$name} || keys %follower >= 8;
	my $pid = fork // return;
	$follower{$name} = { pid => $pid, until => time + 60 };
	return if $pid;
	alarm 60;
	open STDIN, "<", "/dev/null";
	open $_, ">", "/dev/null" for \*STDOUT, \*STDERR; # else the agent's end is not seen
	my $fd = syscall($init + 0, 02000000);
	open my $events, "<&=", $fd or exit;
	syscall($add + 0, $fd + 0, $name, 2) >= 0 or exit; # IN_MODIFY
	do {
		my $f;
		sysopen($f, $name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK) && flock $f, LOCK_SH | LOCK_NB;
	} while sysread $events, my $b, 4096;
	exit;
}

my %do = (
	create  => sub { touch(word(), 1) },
	modify  => sub { touch(word(), 0) },
	attrib  => sub { utime undef, undef, word() },
	mkdir   => sub { mkdir word(), 0777 },
	symlink => sub { my $name = word(); symlink word(), $name },
	remove  => sub { unlink word() },
	rmdir   => sub { rmdir word() },
	rename  => sub { my $from = word(); my $to = word(); rename $from, $to or touch($to, 1) },
	list    => \&list,
	fresh   => \&fresh,
	follow  => \&follow,
	sync    => sub { print ".\n" },
);
while (1) { ($do{word()} || die "unknown\n")->() }
