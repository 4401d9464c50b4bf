package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/ui"
)

// helpColumns is how wide help is, on whatever it is read.
const helpColumns = 80

// Help has the commands in the order in which they were added: the first ones first.
func init() { cobra.EnableCommandSorting = false }

// addHelp adds the commands of cobra, and replaces its words with devvm's.
func addHelp(root *cobra.Command) {
	root.SetHelpCommandGroupID(setUp)
	root.SetCompletionCommandGroupID(setUp)
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			describeHelp(cmd)
		case "completion":
			describeCompletion(cmd)
		}
	}
	root.InitDefaultVersionFlag()
	root.Flags().Lookup("version").Usage = "print devvm's version"
	root.SetVersionTemplate("devvm {{.Version}}\n")
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages |", fmt.Sprintf(".FlagUsagesWrapped %d |", helpColumns)))
	finishHelp(root)
}

// finishHelp breaks the texts of a command and of those below it into lines, and describes
// --help.
func finishHelp(cmd *cobra.Command) {
	cmd.Long = ui.Fill(cmd.Long, helpColumns)
	cmd.InitDefaultHelpFlag()
	cmd.Flags().Lookup("help").Usage = "show this help"
	for _, below := range cmd.Commands() {
		finishHelp(below)
	}
}

// describeHelp describes the help command. It refuses an unknown command: cobra would show the
// help of another, which looks like an answer and can be taken for a script.
func describeHelp(help *cobra.Command) {
	help.Short = "Show the help of a command"
	help.Long = ""
	help.Example = "  devvm help snapshot create"
	help.Run = nil
	help.RunE = func(cmd *cobra.Command, args []string) error {
		about := cmd.Root()
		for _, word := range args {
			below, rest, err := about.Find([]string{word})
			if err != nil || below == about || len(rest) > 0 {
				return unknownCommand(about, word)
			}
			about = below
		}
		return about.Help()
	}
}

// describeCompletion describes the completion commands, in devvm's words and in 80 columns. An
// unknown shell is an error: cobra would print help, which could be taken for a script.
func describeCompletion(cmd *cobra.Command) {
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.Short = "Print the script that completes devvm's words in your shell"
	cmd.Long = `Print the script that completes devvm's words in your shell: commands, flags,
projects, snapshots, images, templates, published ports and Docker's own words.`
	cmd.Example = "  source <(devvm completion bash)"
	load := map[string]string{
		"bash":       "  source <(devvm completion bash)   # this shell; needs bash-completion\n  devvm completion bash | sudo tee /etc/bash_completion.d/devvm",
		"zsh":        "  source <(devvm completion zsh)    # this shell\n  devvm completion zsh >\"${fpath[1]}/_devvm\"",
		"fish":       "  devvm completion fish | source    # this shell\n  devvm completion fish >~/.config/fish/completions/devvm.fish",
		"powershell": "  devvm completion powershell | Out-String | Invoke-Expression",
	}
	for _, shell := range cmd.Commands() {
		shell.Short = "Print the script for " + shell.Name()
		shell.Long = ""
		shell.Example = load[shell.Name()]
		if f := shell.Flags().Lookup("no-descriptions"); f != nil {
			f.Usage = "complete words without describing them"
		}
	}
}
