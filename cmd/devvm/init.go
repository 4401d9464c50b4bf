package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newInitCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "Write a devvm.toml to start from",
		Long: `Write a short, commented devvm.toml into the current directory (or -C's).
It is optional: a directory without one is a project with the defaults.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			dir, err := a.projectDir()
			if err != nil {
				return err
			}
			path := filepath.Join(dir, config.FileName)
			// O_EXCL: a file that is there is the user's and stays.
			f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if errors.Is(err, fs.ErrExist) {
				return &ui.Error{Code: ui.ExitUsage, Msg: path + " exists already", Hint: "see all keys with: devvm config --example"}
			}
			if err != nil {
				return fmt.Errorf("write %s: %w", config.FileName, err)
			}
			_, err = f.WriteString(config.Template(runtime.NumCPU()))
			if cerr := f.Close(); err == nil {
				err = cerr
			}
			if err != nil {
				return fmt.Errorf("write %s: %w", config.FileName, err)
			}
			fmt.Fprintf(a.ErrLines(2), "wrote %s\n", ui.Escape(path))
			return nil
		},
	}
}
