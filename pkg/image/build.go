package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/devvm/devvm/pkg/disk"
)

const (
	// rootSize is the size of the file system that a build makes, and so the
	// least that a project's disk can have.
	rootSize = 8 << 30
	// A build unpacks Debian twice and holds the disk once beside it; the
	// store takes the disk raw, then as qcow2.
	workSpace  = 2500 << 20
	storeSpace = 1700 << 20
)

// Steps of a build, in their order, as Progress is told of them.
const (
	StepWait     = "waiting for another build"
	StepPackages = "installing Debian's packages"
	StepDisk     = "writing the disk"
	StepCheck    = "computing checksums"
)

// BuildOptions say what to build.
type BuildOptions struct {
	Name     string            // the recipe, Default if ""
	Stock    bool              // the untrimmed variant: stock units and initrd, to compare with
	Log      io.Writer         // messages of the programs that run; nil drops them
	Progress func(step string) // told when a step begins; may be nil
}

// Build makes an image from a recipe. Without root it works in a user
// namespace. Two builds in one store take turns; one that had to wait returns
// the other's image if that is of the same recipe.
func (s *Store) Build(ctx context.Context, opts BuildOptions) (Image, error) {
	if opts.Name == "" {
		opts.Name = Default
	}
	if opts.Stock && !strings.HasSuffix(opts.Name, stockSuffix) {
		opts.Name += stockSuffix
	}
	if opts.Log == nil {
		opts.Log = io.Discard
	}
	if opts.Progress == nil {
		opts.Progress = func(string) {}
	}
	r, err := openRecipe(s.recipes, opts.Name)
	if err != nil {
		return Image{}, err
	}
	if err := s.CheckHost(ctx); err != nil {
		return Image{}, fmt.Errorf("build image %s: %w", opts.Name, err)
	}

	waited := false
	unlock, err := s.lock(ctx) // makes the directory
	if err != nil {
		return Image{}, err
	}
	unlock()
	unlock, err = s.flock(ctx, ".build.lock", func() { waited = true; opts.Progress(StepWait) })
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	if waited {
		img, err := s.Resolve(ctx, r.name)
		if err == nil && img.Recipe == r.digest() {
			return img, nil
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return Image{}, err
		}
	}
	img, err := s.build(ctx, r, opts)
	if err != nil {
		return Image{}, fmt.Errorf("build image %s: %w", opts.Name, err)
	}
	return img, nil
}

// CheckHost says what keeps this host from building images: any of *ToolError,
// *SpaceError and ErrNoUserNamespaces, joined. It changes nothing.
func (s *Store) CheckHost(ctx context.Context) error {
	tools := []string{"mmdebstrap", "mke2fs", "qemu-img", "tar"}
	if os.Geteuid() != 0 {
		tools = append(tools, "newuidmap")
	}
	var errs []error
	for _, t := range tools {
		if _, err := s.tool(t); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 && os.Geteuid() != 0 {
		errs = append(errs, s.checkNamespaces(ctx))
	}
	if _, err := os.Stat(s.keyring); err != nil {
		errs = append(errs, &ToolError{Tool: s.keyring, Package: "debian-archive-keyring"})
	}
	if err := checkSpace(s.work, workSpace); err != nil {
		errs = append(errs, err)
	}
	if err := checkSpace(s.dir, storeSpace); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// checkNamespaces tries what the build will do without root.
func (s *Store) checkNamespaces(ctx context.Context) error {
	bin, err := s.tool("mmdebstrap")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, bin, "--unshare-helper", "true")
	cmd.Env = s.env(nil)
	var messages tail
	cmd.Stderr = &messages
	err = cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("%w: %s", ErrNoUserNamespaces, messages.String())
	}
	return nil
}

func (s *Store) build(ctx context.Context, r recipe, opts BuildOptions) (Image, error) {
	// work can be entered by the mapped users; in tmp they can make, but not
	// touch each other's, files. Names are unguessable, the recipe is ours.
	work, err := s.newScratch(ctx, s.work, workPrefix+strconv.Itoa(os.Geteuid())+"-", 0o711)
	if err != nil {
		return Image{}, err
	}
	defer work.remove(ctx)
	out, err := s.newScratch(ctx, s.dir, tempPrefix, 0o700)
	if err != nil {
		return Image{}, err
	}
	defer out.remove(ctx)
	if err := os.Mkdir(work.path("tmp"), 0o700); err != nil {
		return Image{}, fmt.Errorf("make temporary directory: %w", err)
	}
	if err := os.Chmod(work.path("tmp"), 0o777|os.ModeSticky); err != nil {
		return Image{}, fmt.Errorf("make temporary directory: %w", err)
	}
	if err := r.extract(work.path("recipe")); err != nil {
		return Image{}, err
	}

	opts.Progress(StepPackages)
	start := time.Now()
	if err := s.install(ctx, r, work, out, opts.Log); err != nil {
		return Image{}, err
	}
	s.log.Info("installed packages", "recipe", r.name, "took", time.Since(start))

	opts.Progress(StepDisk)
	if err := disk.Convert(ctx, out.path("disk.raw"), out.path(fileNames[RoleDisk])); err != nil {
		return Image{}, err
	}

	opts.Progress(StepCheck)
	m, err := describe(ctx, out)
	if err != nil {
		return Image{}, err
	}
	m.Name, m.Recipe, m.Stock, m.Forks, m.Management, m.Mounts, m.Created = r.name, r.digest(), r.stock, !r.stock, !r.stock, true, s.now().UTC().Truncate(time.Second)
	m.Arch, m.DiskSize = runtime.GOARCH, rootSize
	for _, name := range []string{"disk.raw", "cmdline", "engine", "packages"} {
		if err := os.Remove(out.path(name)); err != nil {
			return Image{}, fmt.Errorf("remove intermediate file: %w", err)
		}
	}
	return out.commit(ctx, m)
}

// install runs mmdebstrap, hands its tar to the recipe's assemble and unpacks
// what that makes into out, all three at once.
func (s *Store) install(ctx context.Context, r recipe, work, out *scratch, log io.Writer) error {
	root := os.Geteuid() == 0
	mode := "--mode=unshare"
	if root {
		mode = "--mode=root"
	}
	args := append([]string{mode}, r.lines("mmdebstrap.options")...)
	args = append(args,
		"--include="+strings.Join(r.packages(), ","),
		fmt.Sprintf(`--customize-hook=sh '%s' "$1" %s`, work.path("recipe", "download"), r.variant()),
		"trixie", "-") // with its updates, from mmdebstrap's default mirrors

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	debootstrap, err := s.command(ctx, work, log, "mmdebstrap", args...)
	if err != nil {
		return err
	}
	assembleArgs := []string{"sh", work.path("recipe", "assemble"), work.path("recipe"), r.variant(), strconv.Itoa(rootSize)}
	if !root {
		assembleArgs = append([]string{"mmdebstrap", "--unshare-helper"}, assembleArgs...)
	}
	assemble, err := s.command(ctx, work, log, assembleArgs[0], assembleArgs[1:]...)
	if err != nil {
		return err
	}
	assemble.name = "assemble"
	unpack, err := s.command(ctx, work, log, "tar", "-x", "--no-same-owner", "-C", out.dir, "-f", "-")
	if err != nil {
		return err
	}
	if err := pipe(debootstrap, assemble); err != nil {
		return err
	}
	if err := pipe(assemble, unpack); err != nil {
		return err
	}

	// The first that fails is the one to blame. Our copy of its output's pipe is
	// closed after the others were told to end, so that they see no early end.
	var g errgroup.Group
	for _, c := range []*command{debootstrap, assemble, unpack} {
		err := c.Start()
		closeEnd(c.Stdin)
		if err != nil {
			err = fmt.Errorf("start %s: %w", c.name, err)
			cancel(err)
			closeEnd(c.Stdout)
			g.Go(func() error { return err })
			continue
		}
		g.Go(func() error {
			err := c.wait(ctx)
			if err != nil {
				cancel(err)
			}
			closeEnd(c.Stdout)
			return err
		})
	}
	return g.Wait()
}

// pipe connects from's standard output with to's standard input.
func pipe(from, to *command) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	from.Stdout, to.Stdin = w, r
	return nil
}

// closeEnd closes our copy of a pipe's end that a command was started with.
func closeEnd(end any) {
	if f, ok := end.(*os.File); ok && f != nil {
		_ = f.Close()
	}
}

// describe reads what assemble left in out into a manifest.
func describe(ctx context.Context, out *scratch) (Manifest, error) {
	m := Manifest{Packages: map[string]string{}, Files: map[string]File{}}
	for name, to := range map[string]*string{"cmdline": &m.Cmdline, "engine": &m.Engine} {
		data, err := os.ReadFile(out.path(name))
		if err != nil {
			return m, fmt.Errorf("read what the recipe made: %w", err)
		}
		*to = strings.TrimSpace(string(data))
	}
	f, err := os.Open(out.path("packages"))
	if err != nil {
		return m, fmt.Errorf("read what the recipe made: %w", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, version, ok := strings.Cut(lines.Text(), " ")
		if ok {
			m.Packages[name] = version
		}
	}
	for role, name := range fileNames {
		file, err := sumFile(ctx, out.path(name))
		if err != nil {
			return m, fmt.Errorf("read what the recipe made: %w", err)
		}
		m.Files[role] = file
	}
	return m, nil
}

// sumFile describes a file.
func sumFile(ctx context.Context, path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	return sum(filepath.Base(path), contextReader{ctx, f})
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	io.Reader
}

// Read implements io.Reader.
func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}
