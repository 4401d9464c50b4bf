package main

import (
	"cmp"
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/ui"
)

// patienceComplete is how long a shell that completes a word waits for the words.
const patienceComplete = 3 * time.Second

// word is one that can stand in a place of a command line, and what tells it from others.
type word struct{ name, note string }

// lister lists the words that can stand in one place.
type lister func(ctx context.Context, s *project.Service) ([]word, error)

// completes has the shell complete a command's first argument.
func (a *app) completes(cmd *cobra.Command, list lister) *cobra.Command {
	words := a.completion(list, cobra.ShellCompDirectiveNoFileComp)
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, *cmp.Or(cmd.CompletionOptions.DefaultShellCompDirective, cmd.Root().CompletionOptions.DefaultShellCompDirective)
		}
		return words(cmd, args, typed)
	}
	return cmd
}

// takesFiles has the shell complete what nothing else is known of with names of files, as
// it does for no other command.
func takesFiles(cmd *cobra.Command) *cobra.Command {
	cmd.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveDefault)
	return cmd
}

// complete has the shell complete the value of a command's flag.
func complete(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // there is no such flag, or it was said twice
	}
}

// completion makes of a list what cobra asks for. What cannot be listed is not completed:
// an error would stand in the middle of the line that is being typed.
func (a *app) completion(list lister, otherwise cobra.ShellCompDirective) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), patienceComplete)
		defer cancel()
		s, err := a.service()
		if err != nil {
			return nil, otherwise
		}
		words, err := list(ctx, s)
		if err != nil {
			return nil, otherwise
		}
		out := make([]cobra.Completion, 0, len(words))
		for _, w := range words {
			out = append(out, cobra.CompletionWithDesc(w.name, ui.Escape(w.note)))
		}
		return out, otherwise
	}
}

// projectWords are the names of the projects that have a VM.
func projectWords(ctx context.Context, s *project.Service) ([]word, error) {
	all, err := s.List(ctx)
	var out []word
	for _, one := range all {
		out = append(out, word{one.Project, one.Dir})
	}
	return out, err
}

// formerWords are the names of the projects whose directory is gone.
func formerWords(ctx context.Context, s *project.Service) ([]word, error) {
	all, err := s.List(ctx)
	var out []word
	for _, one := range all {
		if one.DirGone {
			out = append(out, word{one.Project, one.Dir})
		}
	}
	return out, err
}

// snapshotWords are the names of the snapshots of the project at hand.
func (a *app) snapshotWords(ctx context.Context, s *project.Service) ([]word, error) {
	p, err := a.find(ctx, s)
	if err != nil {
		return nil, err
	}
	all, err := s.Snapshots(ctx, p)
	var out []word
	for _, one := range all {
		out = append(out, word{one.Name, one.Created.Local().Format(time.DateTime) + ", " + snapshotOf(one)})
	}
	return out, err
}

// imageWords are the digests of the images: several can have one name.
func imageWords(ctx context.Context, s *project.Service) ([]word, error) {
	all, err := s.Images.List(ctx)
	var out []word
	for _, one := range all {
		out = append(out, word{short(one.Digest), one.Name + ", " + one.Created.Local().Format(time.DateTime)})
	}
	return out, err
}

// templateWords are the IDs of the templates.
func templateWords(_ context.Context, s *project.Service) ([]word, error) {
	all, err := s.Templates.List()
	var out []word
	for _, one := range all {
		out = append(out, word{one.ID, one.Created.Local().Format(time.DateTime)})
	}
	return out, err
}
