package main

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/guest"
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

// imageWords are the names of the images, and their digests: several can have one name.
func imageWords(ctx context.Context, s *project.Service) ([]word, error) {
	all, err := s.Images.List(ctx)
	var out []word
	named := map[string]bool{}
	for _, one := range all {
		if !named[one.Name] {
			named[one.Name] = true
			out = append(out, word{one.Name, "the newest of that name"})
		}
		out = append(out, word{short(one.Digest), one.Name + ", " + one.Created.Local().Format(time.DateTime)})
	}
	return out, err
}

// portWords are the ports of this host that containers of the project at hand publish.
func (a *app) portWords(ctx context.Context, s *project.Service) ([]word, error) {
	p, err := a.find(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := s.Dirs.Secure(p.Name); err != nil {
		return nil, err
	}
	r, err := s.Ports(ctx, p)
	var out []word
	for _, one := range r.Ports {
		out = append(out, word{strconv.Itoa(int(one.HostPort)), fmt.Sprintf("%s %d/%s", one.Container, one.Port, one.Protocol)})
	}
	return out, err
}

// dockerCommands are Docker's, for a VM that cannot be asked.
var dockerCommands = []string{
	"attach", "build", "builder", "buildx", "commit", "compose", "container", "context", "cp", "create", "diff", "events",
	"exec", "export", "history", "image", "images", "import", "info", "inspect", "kill", "load", "login", "logout", "logs",
	"manifest", "network", "pause", "plugin", "port", "ps", "pull", "push", "rename", "restart", "rm", "rmi", "run", "save",
	"search", "start", "stats", "stop", "swarm", "system", "tag", "top", "unpause", "update", "version", "volume", "wait",
}

// mostCompletions bounds what a VM can say of the words for one place, in bytes.
const mostCompletions = 64 << 10

// dockerWord is one that a VM may propose: what a shell and a terminal take as a word.
var dockerWord = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_./:@=-]*$`)

// completeDocker asks the Docker client in the VM which words can stand in a place, as a shell asks
// that of this host.
func (a *app) completeDocker(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var out []cobra.Completion
	if len(args) == 0 {
		out = dockerCommands
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), patienceComplete)
	defer cancel()
	s, err := a.service()
	if err != nil {
		return out, cobra.ShellCompDirectiveDefault
	}
	p, err := a.find(ctx, s)
	if err == nil {
		err = s.Dirs.Secure(p.Name)
	}
	if err != nil {
		return out, cobra.ShellCompDirectiveDefault
	}
	client, err := s.Look(ctx, p)
	if err != nil {
		return out, cobra.ShellCompDirectiveDefault
	}
	defer client.Close()
	said := &head{most: mostCompletions}
	code, err := client.Run(ctx, guest.Command{Argv: slices.Concat([]string{"docker", "__complete"}, args, []string{typed}), Stdout: said})
	if err != nil || code != 0 {
		return out, cobra.ShellCompDirectiveDefault
	}
	return wordsOfVM(said.String())
}

// wordsOfVM takes what a client in the VM proposes: words, and no more of what the shell is to do
// than to leave files out or a blank.
func wordsOfVM(said string) (words []cobra.Completion, directive cobra.ShellCompDirective) {
	directive = cobra.ShellCompDirectiveDefault
	for line := range strings.Lines(said) {
		line = strings.TrimSuffix(line, "\n")
		if number, ok := strings.CutPrefix(line, ":"); ok {
			if n, err := strconv.Atoi(number); err == nil {
				directive = cobra.ShellCompDirective(n) & (cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace)
			}
			continue
		}
		name, note, described := strings.Cut(line, "\t")
		switch {
		case !dockerWord.MatchString(name):
		case described:
			words = append(words, cobra.CompletionWithDesc(name, ui.Escape(note)))
		default:
			words = append(words, name)
		}
	}
	return words, directive
}

// head keeps the beginning of what is written to it.
type head struct {
	strings.Builder
	most int
}

// Write implements io.Writer.
func (h *head) Write(b []byte) (int, error) {
	_, _ = h.Builder.Write(b[:min(len(b), h.most-h.Len())])
	return len(b), nil
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
