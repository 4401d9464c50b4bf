# Runs a script and says, if it fails, where. Arguments: the script, and how many lines at its
# beginning are not its writer's. The script runs as it would without this; where that is not
# sure, this becomes it.
use strict;
use Fcntl;
my ($script, $ours) = @ARGV;
sub plain { exec $script; die "$script: $!\n" }
open my $f, "<", $script or plain();
my @line = <$f>;
close $f;

my ($shell, $option) = ($line[0] // "") =~ m{^#!\s*(?:/usr/bin/env\s+(?:-S\s*)?)?(\S+)(?:\s+(\S.*?))?\s*$} or plain();
my ($name) = $shell =~ m{([^/]+)$} or plain();
my $failed = "$script.failed";
unlink $failed;

# bash tells its last command to a trap. A trap of the script's takes its place. Where bash is to
# tell all that it does, it would tell of this, too.
if ($name eq "bash") {
	plain() if ($option // "") =~ /(?:^|\s)-[a-zA-Z]*[xv]|xtrace|verbose/;
	my $env = "$script.env";
	open my $w, ">", $env or plain();
	print $w "unset BASH_ENV\ntrap '[ \$? = 0 ] || printf %s \"\$BASH_COMMAND\" >$failed' EXIT\n";
	close $w or plain();
	$ENV{BASH_ENV} = $env;
	my $status = system { $script } $script;
	unlink $env;
	if ($status > 0 && open my $r, "<", $failed) {
		local $/;
		my $text = <$r>;
		print STDERR "the script failed at: $text\n" if $text !~ /^trap .*BASH_COMMAND/;
	}
	leave($status);
}

# dash tells nothing. It reads the script from a pipe that has a packet for each line: it takes
# these one at a time, when it has done what came before, so what is left in the pipe at its end
# has not been reached.
plain() if ($shell =~ m{/} ? readlink $shell // $shell : readlink "/bin/$shell" // $shell) !~ m{(^|/)dash$};
plain() if ($option // "") !~ /^(-[aefuC]+)?$/ || @line > 4000 || grep { length > 4000 } @line;
$^F = 9;    # the pipe is for the shell
pipe my $r, my $w or plain();
my $fd = fileno $r;
plain() if $fd > 9;
fcntl $w, 1031, 4096 * (@line + 1);    # F_SETPIPE_SZ; if it is too short, write fails
fcntl $w, F_SETFL, O_WRONLY | O_NONBLOCK | O_DIRECT or plain();
my $before = "exec $fd<&-; ";          # and not for what the shell starts
for (@line) {
	defined syswrite $w, $before . $_ or plain();
	$before = "";
}
close $w;
my $status = system { $shell } $shell, $option ? $option : (), "-c", ". /dev/fd/$fd", $script;
my $left = pack "i", 0;
if ($status > 0 && ioctl $r, 0x541b, $left) {    # FIONREAD
	$left = unpack "i", $left;
	$left -= length pop @line while $left > 0 && @line;
	tell_lines();
}
leave($status);

# tell_lines shows the command that the last line ends: the fewest lines that are one.
sub tell_lines {
	$SIG{PIPE} = "IGNORE";
	my ($last, $first) = (scalar @line, scalar @line);
	for (my $n = $last; $n > $ours && $last - $n < 40; $n--) {
		open my $parse, "|-", "$shell -n 2>/dev/null" or last;
		print $parse @line[$n - 1 .. $last - 1];
		if (close $parse) { $first = $n; last }
	}
	$first-- while $first - 1 > $ours && $line[$first - 2] =~ /\\$/;
	my $text = join "", @line[$first - 1 .. $last - 1];
	$text .= "\n" if $text !~ /\n$/;
	my ($from, $to) = map { $_ - $ours } $first, $last;
	print STDERR $from == $to ? "the script failed in line $to: $text" : "the script failed in lines $from to $to:\n$text";
}

sub leave {
	my ($status) = @_;
	die "$script: $!\n" if $status < 0;
	kill $status & 127, $$ if $status & 127;
	exit $status >> 8;
}
