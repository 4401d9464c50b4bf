// Command fscheck finds out what holds on a file system, for `make vmtest`: it says what
// system calls do there, case by case, so that two file systems can be compared, and it
// reads and writes at random and checks each byte.
//
// It is a test tool, never installed, and static, so that it runs in an empty container.
// The cases follow those of pjdfstest, the random reads and writes those of fsx.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "fscheck:", err)
		os.Exit(1)
	}
}

const usage = `usage:
  fscheck cases DIR                        what system calls do in DIR, a line for each case
  fscheck random [-time T] [-seed N] [-direct] [-size BYTES] FILE
                                           read, write, map and truncate FILE at random, checking
  fscheck tree [-time T] [-seed N] [-workers N] DIR
                                           make, change, rename and remove files below DIR at once, checking
  fscheck verify DIR                       check all files that tree has left in DIR, and count them
  fscheck many [-n N] DIR                  make N files in one directory, list and remove them
  fscheck list DIR                         list a directory, and fail if a name is there twice`

// run carries out one command line.
func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	if helper, ok := helpers[args[0]]; ok { // a second process of a case
		return helper(args[1:])
	}
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	length := f.Duration("time", 10*time.Second, "how long")
	seed := f.Uint64("seed", uint64(time.Now().UnixNano()), "of the random choices")
	direct := f.Bool("direct", false, "read and write around the page cache, and do not map")
	size := f.Int("size", 1<<20, "bytes that the file has at most")
	workers := f.Int("workers", 4, "how many at once")
	n := f.Int("n", 100_000, "number of files")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	if f.NArg() != 1 {
		return errors.New(usage)
	}
	path := f.Arg(0)
	switch args[0] {
	case "cases":
		return cases(ctx, path, out)
	case "random":
		return random(ctx, path, randomOptions{length: *length, seed: *seed, direct: *direct, size: *size}, out)
	case "tree":
		return tree(ctx, path, *length, *seed, *workers, out)
	case "verify":
		count, err := verify(path)
		if err == nil {
			_, err = fmt.Fprintln(out, count, "files are whole")
		}
		return err
	case "many":
		return many(path, *n, out)
	case "list":
		names, err := list(path)
		if err == nil {
			_, err = fmt.Fprintln(out, len(names), "names")
		}
		return err
	}
	return errors.New(usage)
}

// many makes n files in one directory, lists them, looks some up, and removes them.
func many(dir string, n int, out io.Writer) error {
	dir, err := os.MkdirTemp(dir, "many")
	if err != nil {
		return err
	}
	began := time.Now()
	step := func(what string) {
		fmt.Fprintf(out, "%s: %.1f s\n", what, time.Since(began).Seconds())
		began = time.Now()
	}
	for i := range n {
		f, err := os.OpenFile(dir+"/file-"+strconv.Itoa(i), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	step(fmt.Sprintf("made %d files", n))
	names, err := list(dir)
	if err != nil {
		return err
	}
	if len(names) != n {
		return fmt.Errorf("listed %d names of %d files", len(names), n)
	}
	step("listed")
	for name := range names {
		if err := os.Remove(dir + "/" + name); err != nil {
			return err
		}
	}
	step("removed")
	return os.Remove(dir)
}

// list reads a directory and fails if a name is there twice.
func list(dir string) (map[string]bool, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names := map[string]bool{}
	for {
		some, err := d.Readdirnames(1000)
		for _, name := range some {
			if names[name] {
				return nil, fmt.Errorf("%s is listed twice", name)
			}
			names[name] = true
		}
		if errors.Is(err, io.EOF) {
			return names, nil
		}
		if err != nil {
			return nil, err
		}
	}
}
