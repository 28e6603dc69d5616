"""A program of a sandbox that watches files. Perl is in every image of Debian's."""

from __future__ import annotations

WATCH = r"""
use strict;
$| = 1;
chomp(my $machine = `uname -m`);
my ($init, $add) = @{{x86_64 => [294, 254], aarch64 => [26, 27]}->{$machine}};
my $fd = syscall($init, 0);
my %watched;
for my $path (@ARGV) {
    my $copy = $path;
    # IN_MODIFY, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE
    my $number = syscall($add, $fd, $copy, 0x2 | 0x40 | 0x80 | 0x100 | 0x200 | hex($ENV{ALSO} // "0"));
    die "$path: $!\n" if $number < 0;
    $watched{$number} = $path;
}
print "watching\n";
$SIG{PIPE} = "IGNORE";
open(my $events, "<&=", $fd) or die;
my %seen;
while (sysread($events, my $data, 65536)) {
    while (length $data) {
        my ($number, $mask, undef, $length) = unpack("iIII", $data);
        my $name = unpack("Z*", substr($data, 16, $length));
        substr($data, 0, 16 + $length) = "";
        exit if $name eq "end";
        printf "%s %s %x\n", $watched{$number}, $name || "-", $mask unless $seen{$number, $name, $mask}++;
    }
}
"""
"""Tells once of each kind of event at each of its arguments, until something is called `end`."""
