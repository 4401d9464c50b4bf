package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/config"
)

func (a *app) newConfigCmd() *cobra.Command {
	var example bool
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print the settings in effect and where each comes from",
		Example: `  devvm config
  devvm config --example      # every key, explained`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if example {
				_, err := io.WriteString(a.Out, config.Example())
				return err
			}
			s, err := a.service()
			if err != nil {
				return err
			}
			p, err := a.find(cmd.Context(), s)
			if err != nil {
				return err
			}
			cfg, err := s.Config(p.Dir)
			if err != nil {
				return err
			}
			if a.json {
				return a.JSON(cfg.Entries())
			}
			_, err = fmt.Fprint(a.Out, cfg.TOML())
			return err
		},
	}
	cmd.Flags().BoolVar(&example, "example", false, "print a devvm.toml with every key, explained")
	cmd.Flags().Bool("json", false, "print JSON")
	cmd.MarkFlagsMutuallyExclusive("example", "json")
	return cmd
}
