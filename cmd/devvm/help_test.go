package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/ui"
)

// visible are the commands that help shows, each before those below it.
func visible(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	for _, below := range cmd.Commands() {
		if !below.Hidden {
			all = append(all, visible(below)...)
		}
	}
	return all
}

// testRoot is the root command as users have it.
func testRoot() *cobra.Command {
	streams, _, _, _ := ui.Test()
	return newApp(streams, os.Getenv, nil).newRootCmd()
}

var (
	exampleCalls = regexp.MustCompile(`\bdevvm( [^|&;<>#)]*)?`)
	shellQuotes  = regexp.MustCompile(`'[^']*'`)
)

// Each command is in a group of help, says what it does, and has examples that it accepts.
func TestHelp(t *testing.T) {
	root := testRoot()
	cobraSays := regexp.MustCompile(`(?i)help about|help for|help provides|autocompletion|version for|this application`)
	for _, cmd := range visible(root) {
		name := cmd.CommandPath()
		if cmd.Parent() == root && !slices.ContainsFunc(root.Groups(), func(g *cobra.Group) bool { return g.ID == cmd.GroupID }) {
			t.Errorf("%s is in no group", name)
		}
		text := cmd.Short + "\n" + cmd.Long + "\n" + cmd.UsageString()
		if found := cobraSays.FindString(text); found != "" {
			t.Errorf("%s: %q is not in words of ours", name, found)
		}
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: %q: want a short description without a full stop", name, cmd.Short)
		}
		if !strings.Contains(cmd.Example, name) {
			t.Errorf("%s: its examples do not call it: %q", name, cmd.Example)
		}
		for line := range strings.Lines(cmd.Example) {
			if !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: not indented: %q", name, line)
			}
			line, _, _ = strings.Cut(line, " #")
			for _, call := range exampleCalls.FindAllString(shellQuotes.ReplaceAllString(line, "quoted"), -1) {
				checkCall(t, call)
			}
		}
	}
}

// checkCall parses a call of devvm, and does not run it.
func checkCall(t *testing.T, call string) {
	t.Helper()
	words := strings.Fields(strings.ReplaceAll(call, `"`, ""))[1:]
	root := testRoot()
	cmd, args, err := root.Find(dockerFlags(root, words))
	if err == nil {
		err = cmd.ParseFlags(args)
	}
	if err == nil {
		err = cmd.ValidateArgs(cmd.Flags().Args())
	}
	if err == nil {
		err = cmd.ValidateFlagGroups()
	}
	if err != nil {
		t.Errorf("example %q: %v", call, err)
	}
}
