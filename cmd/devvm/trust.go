package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/trust"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newTrustCmd() *cobra.Command {
	var remove bool
	cmd := &cobra.Command{
		Use:   "trust [DIRECTORY]",
		Short: "Trust the devvm.toml of a directory that others can write",
		Long: `Use the devvm.toml of a directory that belongs to another user, or that others can
write. From then on, those users decide what your VM for that directory runs and how
large it is. Without DIRECTORY, list the directories that you trust.`,
		Example: `  devvm trust /srv/shared/app
  devvm trust --remove /srv/shared/app`,
		Args: cobra.MaximumNArgs(1),
		RunE: a.withService(func(_ context.Context, s *project.Service, args []string) error {
			list := trust.NewList(s.Dirs.Trusted())
			if len(args) == 1 {
				return a.trust(list, args[0], remove)
			}
			if remove {
				return &ui.Error{Code: ui.ExitUsage, Msg: "--remove needs a directory", Hint: "list them with: devvm trust"}
			}
			return a.showTrusted(list)
		}),
	}
	cmd.Flags().BoolVar(&remove, "remove", false, "stop trusting the directory")
	cmd.ValidArgsFunction = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)
	return cmd
}

// trust puts a directory on the list or takes it off.
func (a *app) trust(list trust.List, name string, remove bool) error {
	path := name
	if !filepath.IsAbs(path) {
		dir, err := a.projectDir()
		if err == nil {
			path, err = filepath.Abs(filepath.Join(dir, path))
		}
		if err != nil {
			return err
		}
	}
	p, err := state.New(path)
	if err == nil {
		path = p.Dir
	}
	if !remove {
		if err != nil {
			return &ui.Error{Code: ui.ExitUsage, Err: err}
		}
		return list.Add(path)
	}
	found, err := list.Remove(filepath.Clean(path)) // it may be gone by now
	if err == nil && !found {
		err = &ui.Error{Msg: fmt.Sprintf("%s was not trusted", path), Hint: "list them with: devvm trust"}
	}
	return err
}

// showTrusted prints the list.
func (a *app) showTrusted(list trust.List) error {
	dirs, err := list.Dirs()
	for _, dir := range dirs {
		fmt.Fprintln(a.Out, ui.Escape(dir))
	}
	return err
}
