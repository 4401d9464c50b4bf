package main

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
)

func (a *app) newDockerCmd() *cobra.Command {
	var noStdin bool
	cmd := &cobra.Command{
		Use:   "docker [COMMAND ...]",
		Short: "Run the VM's own Docker client, with Compose and Buildx",
		Long: `Run the Docker client of the VM, for hosts without one. Paths are the VM's: the
client starts in the directory of the VM that is the current one here. If the VM
does not have it, send a build context through a pipe. devvm's own flags go before
Docker's first word.`,
		Example: `  devvm docker ps
  devvm docker compose up -d
  tar c . | devvm docker build -t app -`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
				if a.guestDir(s, p) == "" && namesHere(args) {
					a.Note("this directory is not in the VM: relative paths are below /root there")
				}
				command := guest.Command{Argv: append([]string{"docker"}, args...), Stdin: a.In}
				if noStdin {
					command.Stdin = nil
				}
				err := a.runInGuest(ctx, s, p, command, a.InTerminal && a.OutTerminal && !noStdin)
				if err != nil && ctx.Err() == nil {
					if short := s.ShortOfRoom(ctx, p); short != "" {
						a.Note("%s", short)
					}
				}
				return err
			})(cmd, nil)
		},
	}
	cmd.ValidArgsFunction = a.completeDocker
	cmd.Flags().SetInterspersed(false) // flags after Docker's command are Docker's
	cmd.Flags().BoolVarP(&noStdin, "no-stdin", "n", false, "give the client an empty standard input")
	return cmd
}

// dockerFlags puts a "--" before the first flag after the word docker that is Docker's own,
// as in: devvm docker --version. A -v that is all there is means that, too.
func dockerFlags(root *cobra.Command, args []string) []string {
	cmd, _, err := root.Find(args)
	if err != nil || cmd.Name() != "docker" || cmd.Parent() != root {
		return args
	}
	_ = cmd.InheritedFlags() // makes Flags have those of the root command
	at := 0
	for at < len(args) && args[at] != "docker" { // before it are flags of the root command, and their values
		_, words := flagWords(root, args[at])
		at += words
	}
	for i := at + 1; i < len(args); {
		word := args[i]
		if word == "--" || word == "-" || !strings.HasPrefix(word, "-") || word == "--help" || word == "-h" {
			return args
		}
		known, words := flagWords(cmd, word)
		if !known || word == "-v" && i == len(args)-1 {
			return slices.Insert(slices.Clone(args), i, "--")
		}
		i += words
	}
	return args
}

// flagWords tells whether a word is a flag of cmd, and how many words it and its value are. As
// cobra does, it takes an unknown flag to have a value.
func flagWords(cmd *cobra.Command, word string) (known bool, words int) {
	name, _, given := strings.Cut(word, "=")
	flag := cmd.Flags().Lookup(strings.TrimPrefix(name, "--"))
	if short := len(word) > 1 && word[0] == '-' && word[1] != '-'; short {
		flag, given = cmd.Flags().ShorthandLookup(word[1:2]), len(word) > 2
	}
	if given || flag != nil && flag.NoOptDefVal != "" {
		return flag != nil, 1
	}
	return flag != nil, 2
}

// namesHere tells whether Docker's arguments look like they mean the current directory:
// relative paths, alone or before a colon, and compose's files.
func namesHere(args []string) bool {
	for i, arg := range args {
		if i == 0 && arg == "compose" {
			return true
		}
		_, value, flag := strings.Cut(arg, "=")
		if !flag {
			value = arg
		}
		if value == "." || value == ".." || strings.HasPrefix(value, "./") || strings.HasPrefix(value, "../") || strings.HasPrefix(value, ".:") {
			return true
		}
	}
	return false
}
