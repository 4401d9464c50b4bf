package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/shell"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/tree"
	"github.com/devvm/devvm/pkg/ui"
)

type cpOptions struct {
	follow bool
	quiet  bool
}

func (a *app) newCpCmd() *cobra.Command {
	var o cpOptions
	cmd := &cobra.Command{
		Use:   "cp [flags] SOURCE... vm:TARGET | vm:SOURCE... TARGET",
		Short: "Copy files and directories between this host and the VM",
		Long: `Copy files and directories between this host and the VM, with the rules of cp and
docker cp. If the target is a directory that exists, the source goes into it. A
source that ends in "/." is the contents of the directory. Directories are merged.
Several sources need a directory that exists. A relative path of the VM starts at
/root.

Modes, modification times and symbolic links are kept. The copies belong to root in
the VM and to you on this host. A file has its name only once it is complete.

A VM can put symbolic links into the directories that it can write: the project's,
and writable [[mounts]]. cp follows none of those on this host, neither as the path
that you name nor on the way to it, with or without -L. It tells you instead.

With "-" as the path on this host, a tar archive comes from standard input and is
unpacked into a directory of the VM, or goes to standard output.`,
		Example: `  devvm cp dump.sql vm:/tmp/
  devvm cp a.txt b.txt vm:/srv
  devvm cp vm:/var/lib/app/. ./data
  devvm cp vm:/etc/docker - | tar t`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			copies, toVM, err := copies(args)
			if err != nil {
				return err
			}
			return a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
				for i := range copies {
					copies[i].Follow, copies[i].Untrusted = o.follow, s.Writable(p)
				}
				return a.runCopies(ctx, s, p, copies, toVM, o.quiet)
			})(cmd, nil)
		},
	}
	cmd.Flags().BoolVarP(&o.follow, "follow-link", "L", false, "if the source is a symbolic link, copy what it points to")
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "show no progress")
	alwaysOn(cmd, "recursive", "r", "directories are always copied with everything in them")
	alwaysOn(cmd, "Recursive", "R", "the same")
	alwaysOn(cmd, "archive", "a", "modes, times and links are always kept")
	alwaysOn(cmd, "preserve", "p", "the same")
	for _, name := range []string{"recursive", "Recursive", "archive", "preserve"} {
		_ = cmd.Flags().MarkHidden(name) // for fingers that are used to it
	}
	return cmd
}

// copies are what cp's arguments ask for.
func copies(args []string) (all []guest.Copy, toVM bool, err error) {
	sources := args[:len(args)-1]
	named := map[string]bool{}
	to, toVM := guestPath(args[len(args)-1])
	for _, arg := range sources {
		from, fromVM := guestPath(arg)
		if fromVM == toVM {
			return nil, false, &ui.Error{
				Code: ui.ExitUsage,
				Msg:  "cp copies from this host to the VM or from the VM to this host",
				Hint: "put vm: before a path of the VM, as in: devvm cp file vm:/tmp/ (if the name of a file here begins with vm: ./vm:…)",
			}
		}
		c := guest.Copy{Local: from, Remote: to, Into: len(sources) > 1}
		if fromVM {
			c.Local, c.Remote = to, from
		}
		if c.Local == "-" && c.Into {
			return nil, false, &ui.Error{Code: ui.ExitUsage, Msg: `"-" goes with one source only`, Hint: "run devvm cp once for each source"}
		}
		if name := filepath.Base(from); c.Into && name != "." && name != ".." {
			if named[name] {
				return nil, false, &ui.Error{
					Code: ui.ExitUsage,
					Msg:  fmt.Sprintf("two sources are named %s, and one would replace the other", ui.Escape(name)),
					Hint: "copy one of them separately, to another name or directory",
				}
			}
			named[name] = true
		}
		all = append(all, c)
	}
	return all, toVM, nil
}

// guestPath tells whether a path is the VM's, and what it is there.
func guestPath(arg string) (string, bool) {
	rest, ok := strings.CutPrefix(arg, "vm:")
	if !ok {
		return arg, false
	}
	if rest == "" {
		rest = "."
	}
	return rest, true
}

// runCopies copies in one direction. As cp does, it goes on after a source that cannot be
// copied; the last error is the command's. A target that several cannot go into is one error.
func (a *app) runCopies(ctx context.Context, s *project.Service, p state.Project, all []guest.Copy, toVM, quiet bool) error {
	client, err := s.Connect(ctx, p)
	if err != nil {
		return err
	}
	defer client.Close()
	if first := all[0]; first.Into {
		if toVM {
			err = client.CheckRemote(ctx, first)
		} else {
			err = first.CheckLocal()
		}
		if err != nil {
			return copyError(err, toVM)
		}
	}
	for i, o := range all {
		if oneErr := a.runCopy(ctx, client, o, toVM, quiet); oneErr != nil {
			if ctx.Err() != nil || i == len(all)-1 {
				return oneErr
			}
			a.WriteError(oneErr)
			err = oneErr
		}
	}
	if err != nil {
		return ui.Exit(ui.ExitCode(err)) // it is told already
	}
	return nil
}

// runCopy copies one source.
func (a *app) runCopy(ctx context.Context, client *guest.Client, o guest.Copy, toVM, quiet bool) error {
	if o.Local == "-" && toVM {
		return client.Unpack(ctx, o.Remote, a.In)
	}
	copying := func(pr *ui.Progress) error {
		o.Warn = func(text string) { pr.Warn("%s", text) }
		if o.Local == "-" {
			return client.Pack(ctx, o, a.Out)
		}
		do, text := client.CopyFrom, "copy vm:"+o.Remote
		if toVM {
			do, text = client.CopyTo, "copy "+o.Local
		}
		if quiet || !a.ErrTerminal { // as cp, it says nothing
			return do(ctx, o)
		}
		return pr.Run(ctx, "copy", text, func(ctx context.Context, ph *ui.Phase) error {
			o.Advance = ph.Advance
			return do(ctx, o)
		})
	}
	if o.Local == "-" && a.OutTerminal {
		return &ui.Error{Code: ui.ExitUsage, Err: errors.New("cp does not write an archive to a terminal"), Hint: "send it to a file or a program: devvm cp vm:PATH - >archive.tar"}
	}
	return copyError(a.withProgress(ctx, copying), toVM)
}

// copyError says in cp's words what went wrong.
func copyError(err error, toVM bool) error {
	if link, ok := errors.AsType[*tree.LinkError](err); ok {
		return &ui.Error{
			Msg:  fmt.Sprintf("%s is a symbolic link to %s; a VM can write %s, so cp follows no link there", ui.Escape(link.Path), ui.Escape(link.Target), ui.Escape(link.Dir)),
			Hint: "if the link is yours, name its target instead; if not, find out what made it, and remove it: rm " + shell.Quote(link.Path),
			Kind: err,
		}
	}
	if local, ok := errors.AsType[*fs.PathError](err); ok && toVM && errors.Is(err, fs.ErrNotExist) {
		return &ui.Error{Msg: "there is no " + local.Path + " on this host", Hint: "a path in the VM begins with vm:"}
	}
	return err
}
