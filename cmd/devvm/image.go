package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/image"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/shell"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newImageCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Manage base images",
		Long: `Manage base images. The disk of a VM starts from one. devvm up builds the default
image when there is none.`,
		Example: `  devvm image build
  devvm image ls`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.newImageBuildCmd(), a.newImageLsCmd(), takesFiles(a.newImageImportCmd()), takesFiles(a.completes(a.newImageExportCmd(), imageWords)), a.completes(a.newImageRmCmd(), imageWords), a.newImagePruneCmd())
	return cmd
}

// withImages is withService for a command about images: first it removes what another one has
// left that was killed.
func (a *app) withImages(f func(ctx context.Context, s *project.Service, args []string) error) func(*cobra.Command, []string) error {
	return a.withService(func(ctx context.Context, s *project.Service, args []string) error {
		s.Images.Sweep(ctx)
		return f(ctx, s, args)
	})
}

func (a *app) newImageBuildCmd() *cobra.Command {
	var stock bool
	cmd := &cobra.Command{
		Use:     "build [NAME]",
		Short:   "Build a base image from the recipe that comes with devvm",
		Example: "  devvm image build",
		Args:    cobra.MaximumNArgs(1),
		RunE: a.withImages(func(ctx context.Context, s *project.Service, args []string) error {
			name := image.Default
			if len(args) > 0 {
				name = args[0]
			}
			return a.runImageBuild(ctx, s, image.BuildOptions{Name: name, Stock: stock})
		}),
	}
	cmd.Flags().BoolVar(&stock, "stock", false, "do not trim the guest (only to compare: make bench)")
	cmd.Flags().Bool("json", false, "print progress as JSON lines")
	return cmd
}

func (a *app) runImageBuild(ctx context.Context, s *project.Service, o image.BuildOptions) error {
	if image.RecipeDigest(o.Name) == "" {
		return &ui.Error{Code: ui.ExitUsage, Msg: fmt.Sprintf("there is no recipe named %q", o.Name), Hint: "the recipe is: " + image.Default}
	}
	log, err := os.CreateTemp("", "devvm-image-build-*.log")
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	var built image.Image
	err = a.withProgress(ctx, func(pr *ui.Progress) error {
		var running *ui.Phase
		o.Log = io.Writer(log)
		o.Progress = func(step string) {
			if running != nil {
				running.Done()
			}
			running = pr.Start("image", step)
		}
		var err error
		built, err = s.Images.Build(ctx, o)
		if err == nil && running != nil {
			running.Done()
		}
		return err
	})
	if err != nil && ctx.Err() == nil {
		return &ui.Error{Msg: "the image could not be built", Err: err, Hint: "see what this host lacks with: devvm doctor (the build's log: " + log.Name() + ")"}
	}
	if rerr := os.Remove(log.Name()); rerr != nil {
		rerr = fmt.Errorf("remove log: %w", rerr)
		return errors.Join(err, rerr)
	}
	if err != nil {
		return err
	}
	return a.showImage(built)
}

func (a *app) newImageLsCmd() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the base images",
		Example: "  devvm image ls",
		Args:    cobra.NoArgs,
		RunE: a.withImages(func(ctx context.Context, s *project.Service, _ []string) error {
			images, err := s.Images.List(ctx)
			if err != nil {
				return err
			}
			damaged, err := s.Images.Damaged(ctx)
			if err != nil {
				return err
			}
			if a.json {
				type row struct {
					image.Manifest
					Damaged string `json:"damaged,omitempty"`
				}
				out := []row{}
				for _, i := range images {
					out = append(out, row{Manifest: i.Manifest})
				}
				for _, d := range damaged {
					out = append(out, row{image.Manifest{Digest: d.Digest}, d.Err.Error()})
				}
				return a.JSON(out)
			}
			if quiet {
				for _, i := range images {
					fmt.Fprintln(a.Out, short(i.Digest))
				}
				for _, d := range damaged {
					fmt.Fprintln(a.Out, short(d.Digest))
				}
				return nil
			}
			t := a.Table("NAME", "DIGEST", "ENGINE", "CREATED", "SIZE")
			for _, i := range images {
				t.Row(i.Name, short(i.Digest), i.Engine, i.Created.Local().Format("2006-01-02 15:04"), ui.Size(i.Size()))
			}
			for _, d := range damaged {
				t.Row("(damaged)", short(d.Digest), "", "", ui.Size(d.Used()))
				a.Note("image %s: %s; remove it with: devvm image rm %s", short(d.Digest), d.Err.Error(), short(d.Digest))
			}
			return t.Flush()
		}),
	}
	cmd.Flags().Bool("json", false, "print the manifests as JSON")
	quietly(cmd, &quiet, "digests")
	return cmd
}

// short cuts a digest to what people can tell apart.
func short(digest string) string { return digest[:min(12, len(digest))] }

func (a *app) newImageImportCmd() *cobra.Command {
	var o image.ImportOptions
	cmd := &cobra.Command{
		Use:   "import PATH|URL",
		Short: "Import an image exported on another host, or a cloud image",
		Long: `Import an image that devvm image export wrote, or a cloud image: a disk (qcow2 or
raw) of a system with cloud-init and apt or dnf. Give a path or a URL; a URL needs
the checksum. To use it, name it in devvm.toml: image = "NAME".

With a cloud image, each VM installs Docker Engine over the network at its first
boot. That takes minutes, and such VMs are booted, not forked.`,
		Example: `  devvm image import base.tar
  devvm image import https://example.com/ubuntu.img --name ubuntu --sha256 HEX`,
		Args: cobra.ExactArgs(1),
		RunE: a.withImages(func(ctx context.Context, s *project.Service, args []string) error {
			return a.runImageImport(ctx, s, args[0], o)
		}),
	}
	cmd.Flags().Bool("json", false, "print progress as JSON lines")
	cmd.Flags().StringVar(&o.Name, "name", "", "`name` for devvm.toml (default: the exported image's own)")
	cmd.Flags().StringVar(&o.SHA256, "sha256", "", "the file's checksum in `hex`; a URL needs it")
	return cmd
}

func (a *app) runImageImport(ctx context.Context, s *project.Service, src string, o image.ImportOptions) error {
	var img image.Image
	err := a.withProgress(ctx, func(pr *ui.Progress) (err error) {
		phase := pr.Start("image", "import the image")
		o.Progress = func(done, total int64) { phase.Advance(done, max(total, 0)) }
		img, err = s.Images.Import(ctx, src, o)
		if err == nil {
			phase.Done()
		}
		return err
	})
	if err != nil {
		return explainImage(err)
	}
	return a.showImage(img)
}

// showImage ends a command that has made or brought an image.
func (a *app) showImage(img image.Image) error {
	if a.json {
		return a.JSONLine(struct {
			Type string `json:"type"`
			image.Manifest
		}{"result", img.Manifest})
	}
	_, err := fmt.Fprintln(a.Out, img.Digest)
	return err
}

// explainImage adds to an error of the image store what to do about it.
func explainImage(err error) error {
	for _, known := range []struct {
		is   error
		hint string
		code int
	}{
		{image.ErrNotFound, "list the images with: devvm image ls", ui.ExitError},
		{image.ErrAmbiguous, "give more of its digest; devvm image ls shows it", ui.ExitError},
		{image.ErrDamaged, "get it again (devvm image build, or import), or remove it by its digest (devvm image ls): devvm image rm DIGEST", ui.ExitError},
		{image.ErrInUse, "remove what uses it (devvm ls, devvm rm), or all that nothing uses: devvm prune", ui.ExitError},
		{image.ErrExists, "use it by that name (devvm image ls), or remove it first: devvm image rm", ui.ExitError},
		{image.ErrChecksum, "nothing was imported: download the file again, and take the checksum from its publisher", ui.ExitError},
		{image.ErrNotAChecksum, "give the one that its publisher states, or none for a file on this host: --sha256 HEX", ui.ExitUsage},
		{image.ErrDirChecksum, "leave out --sha256", ui.ExitUsage},
		{image.ErrBadName, "choose another: --name NAME", ui.ExitUsage},
		{image.ErrNoChecksum, "give the one that its publisher states: --sha256 HEX", ui.ExitUsage},
		{image.ErrNoName, "give it one: --name NAME", ui.ExitUsage},
		{fs.ErrExist, "choose another name for the file", ui.ExitError},
		{fs.ErrNotExist, "name a file, a directory or a URL that exists", ui.ExitError},
	} {
		if errors.Is(err, known.is) {
			return &ui.Error{Code: known.code, Err: err, Hint: known.hint}
		}
	}
	return err
}

func (a *app) newImageExportCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "export IMAGE FILE",
		Short:   "Write an image to a file, for devvm image import elsewhere",
		Example: "  devvm image export debian-13 base.tar",
		Args:    cobra.ExactArgs(2),
		RunE: a.withImages(func(ctx context.Context, s *project.Service, args []string) error {
			path, err := filepath.Abs(args[1])
			if err != nil {
				return fmt.Errorf("export image: %w", err)
			}
			err = s.Images.Export(ctx, args[0], path)
			if dir := filepath.Dir(path); errors.Is(err, fs.ErrNotExist) && !errors.Is(err, image.ErrNotFound) && missing(dir) {
				return &ui.Error{Msg: "there is no directory " + dir, Hint: "make it first: mkdir -p " + shell.Quote(dir)}
			}
			if err != nil || !a.json {
				return explainImage(err)
			}
			return a.JSON(map[string]string{"file": path})
		}),
	}
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}

// missing tells whether nothing is at a path.
func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func (a *app) newImageRmCmd() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:     "rm IMAGE",
		Short:   "Remove a base image that no disk uses",
		Example: "  devvm image rm debian-13",
		Args:    cobra.ExactArgs(1),
		RunE: a.withImages(func(ctx context.Context, s *project.Service, args []string) error {
			if !yes {
				if err := a.confirmLastImage(ctx, s, args[0]); err != nil {
					return err
				}
			}
			used, err := s.ImagesInUse(ctx)
			if err != nil {
				return err
			}
			gone, err := s.Images.Remove(ctx, args[0], func(digest string) bool { return used[digest] })
			if err != nil {
				return explainImage(err)
			}
			if a.json {
				return a.JSON(map[string]string{"removed": gone.Digest})
			}
			_, err = fmt.Fprintln(a.Out, gone.Digest)
			return err
		}),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}

// confirmLastImage asks before the only image goes: the next new VM needs another, which takes
// minutes and the network.
func (a *app) confirmLastImage(ctx context.Context, s *project.Service, ref string) error {
	all, err := s.Images.List(ctx)
	if err != nil || len(all) != 1 {
		return err
	}
	last := all[0]
	if img, err := s.Images.Resolve(ctx, ref); err != nil || img.Digest != last.Digest {
		return nil //nolint:nilerr // Remove takes a damaged one, and says what is wrong otherwise
	}
	used, err := s.ImagesInUse(ctx)
	if err != nil || used[last.Digest] { // Remove refuses
		return err
	}
	return a.confirmLoss(ctx, fmt.Sprintf("%s (%s) is the last image. The next new VM must build or import one over the network. Go ahead?", last.Name, short(last.Digest)))
}

func (a *app) newImagePruneCmd() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:     "prune",
		Short:   "Remove images that no disk uses, except the newest of each name",
		Example: "  devvm image prune --dry-run",
		Args:    cobra.NoArgs,
		RunE: a.withImages(func(ctx context.Context, s *project.Service, _ []string) error {
			used, err := s.ImagesInUse(ctx)
			if err != nil {
				return err
			}
			prune := s.Images.Prune
			if dryRun {
				prune = s.Images.Prunable
			}
			freed, err := prune(ctx, func(digest string) bool { return used[digest] })
			if err != nil {
				return err
			}
			if a.json {
				return a.JSON(project.Pruned{Images: freed, DryRun: dryRun})
			}
			_, err = fmt.Fprintln(a.Out, spaceFreed(freed, dryRun))
			return err
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "remove nothing; say how much space it would free")
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}
