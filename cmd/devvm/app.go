package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/disk"
	"github.com/devvm/devvm/pkg/image"
	"github.com/devvm/devvm/pkg/lock"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/shell"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/subnet"
	"github.com/devvm/devvm/pkg/template"
	"github.com/devvm/devvm/pkg/trust"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

// openFunc connects to the hypervisor; tests give a fake.
type openFunc func(context.Context, vm.Options, *slog.Logger) (vm.Hypervisor, error)

// app is what the commands share.
type app struct {
	*ui.Streams
	getenv func(string) string
	open   openFunc
	kernel time.Duration                   // see project.Service
	halt   time.Duration                   // see project.Service
	slow   time.Duration                   // see project.Service
	again  time.Duration                   // see again
	ready  time.Duration                   // see supervisor.Options.WaitReady
	free   func(dir string) (int64, error) // see project.Service
	routes func() ([]subnet.Route, error)  // see project.Service

	// Flags of the root command.
	dir     string // -C
	project string // --project: directory or name
	verbose int    // -v: INFO, -vv: DEBUG

	json    bool // --json of the command that runs
	noted   bool // that devvm.toml of a directory above hides the VM of this one
	started bool // flags and arguments were right, the command itself runs
}

func newApp(streams *ui.Streams, getenv func(string) string, open openFunc) *app {
	return &app{Streams: streams, getenv: getenv, open: open, again: again}
}

// execute runs the command line and shows its error: the only place that
// turns errors into text and exit codes.
func (a *app) execute(ctx context.Context, args []string) int {
	root := a.newRootCmd()
	root.SetArgs(dockerFlags(root, args))
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !a.started {
		err = a.misused(ctx, cmd, err)
	}
	if err == nil {
		err = a.Unanswered()
	}
	if e, ok := errors.AsType[*config.Error](err); ok {
		err = &ui.Error{Code: ui.ExitUsage, Err: err, Hint: e.Hint}
	}
	if dirs, derr := state.NewDirs(a.environment()); derr == nil {
		err = dirs.Explain(err)
	}
	if hint := shortage(err); hint != "" && ui.Hint(err) == "" && a.Unanswered() == nil {
		err = &ui.Error{Code: ui.ExitCode(err), Err: err, Hint: hint}
	}
	if stopped, ok := errors.AsType[*lock.StoppedError](err); ok && ui.Hint(err) == "" {
		err = &ui.Error{Code: ui.ExitBusy, Err: err, Hint: stopped.Hint()}
	}
	if errors.Is(err, vm.ErrStopped) && ui.Hint(err) == "" {
		err = &ui.Error{Err: err, Hint: "resume it with: devvm up"}
	}
	if hostLacks(err) && ui.ExitCode(err) == ui.ExitError {
		e := &ui.Error{Code: ui.ExitHost, Err: err}
		if ui.Hint(err) == "" {
			e.Hint = "see what this host lacks with: devvm doctor"
		}
		err = e
	}
	if a.json && a.Unanswered() == nil {
		a.WriteErrorJSON(err)
	} else {
		a.WriteError(err)
	}
	return ui.ExitCode(err)
}

// shortage says how to get more of what the host has run out of; "" if err is about something else.
func shortage(err error) string {
	_, small := errors.AsType[*image.SpaceError](err)
	start, _ := errors.AsType[*fs.PathError](err)
	switch {
	case small, errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return "make room: devvm df shows what devvm takes, devvm prune frees what nothing uses"
	case errors.Is(err, unix.EMFILE):
		return "allow a process more open files and run the command again: ulimit -n 4096"
	case errors.Is(err, unix.ENFILE):
		return "this host cannot open more files: close programs, or raise fs.file-max (sysctl)"
	case errors.Is(err, unix.ENOMEM):
		return "this host has no memory left: close programs, or suspend other VMs (devvm ls shows them)"
	case start != nil && start.Op == "fork/exec" && errors.Is(err, unix.EAGAIN):
		return "you cannot start more processes: end some, or allow more with ulimit -u"
	}
	return ""
}

// hostLacks tells whether err is that something is not installed or set up on this host.
func hostLacks(err error) bool {
	_, tool := errors.AsType[*image.ToolError](err)
	return tool || errors.Is(err, vm.ErrNoLibvirt) || errors.Is(err, vm.ErrNoQEMU) || errors.Is(err, disk.ErrNoTool) ||
		errors.Is(err, image.ErrNoUserNamespaces)
}

// cobraSays are texts of cobra about arguments and flags, and how devvm says them of a
// command.
var cobraSays = []struct {
	text *regexp.Regexp
	say  string
}{
	{regexp.MustCompile(`^accepts (at most )?(\d+) arg\(s\), received (\d+)$`), "number of arguments: %s takes $1$2, not $3"},
	{regexp.MustCompile(`^requires at least (\d+) arg\(s\), only received (\d+)$`), "number of arguments: %s takes $1 or more, not $2"},
	{regexp.MustCompile(`^if any flags in the group \[(\S+) .*\] are set none of the others can be; \[(\S+) (\S+?)[] ].*$`), "%s: --$2 and --$3 do not go together"},
}

// unknownWord is how cobra begins to say that there is no such command.
var unknownWord = regexp.MustCompile(`^unknown command ("(?:[^"\\]|\\.)*") for `)

// misused explains what is wrong with a command's flags or arguments.
func (a *app) misused(ctx context.Context, cmd *cobra.Command, err error) error {
	e := &ui.Error{Code: ui.ExitUsage, Msg: err.Error(), Hint: "see: " + cmd.CommandPath() + " --help"}
	for _, known := range cobraSays {
		if say := fmt.Sprintf(known.say, cmd.CommandPath()); known.text.MatchString(e.Msg) {
			e.Msg = known.text.ReplaceAllString(e.Msg, say)
		}
	}
	if unknown := unknownWord.FindStringSubmatch(e.Msg); unknown != nil && cmd.HasSubCommands() {
		if word, err := strconv.Unquote(unknown[1]); err == nil {
			return unknownCommand(cmd, word)
		}
	}
	words := cmd.Flags().Args()
	// cobra calls a word that is too many an unknown command. It may be a project's name, as
	// other tools take it.
	if none := cobra.NoArgs(cmd, words); none != nil && none.Error() == err.Error() && cmd.HasParent() && !cmd.HasSubCommands() {
		e.Msg = fmt.Sprintf("%s takes no arguments, but got %q", cmd.CommandPath(), words[0])
		if !cmd.Parent().HasParent() && a.isProject(ctx, words[0]) {
			e.Hint = "name a project with: " + cmd.CommandPath() + " --project " + shell.Quote(words[0])
		}
		if cmd.Flags().Lookup("shell") != nil && shell.Known(words[0]) {
			e.Hint = "name a shell with: " + cmd.CommandPath() + " --shell " + words[0]
		}
	}
	return e
}

func (a *app) newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "devvm",
		Short: "A small VM with Docker for each project, reachable from this host alone",
		Long: `devvm gives each project directory its own small VM with Docker Engine in it.
Docker changes the VM's firewall, never this host's.`,
		Example: `  devvm up                 # in a project directory
  eval "$(devvm env)"      # DOCKER_HOST points at the VM
  docker compose up        # any Docker client, unchanged
  devvm nuke               # start over with a pristine VM`,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if f := cmd.Flags().Lookup("json"); f != nil {
				a.json = f.Value.String() == "true"
			}
			if err := cmd.ValidateFlagGroups(); err != nil { // cobra does so later, as of a run that failed
				return err
			}
			a.started = true
			return nil
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = false
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	flags := root.PersistentFlags()
	flags.StringVarP(&a.dir, "directory", "C", "", "run as if started in this `directory`")
	flags.StringVar(&a.project, "project", "", "use this `project`, a directory or a name (default: found from the current directory)")
	flags.CountVarP(&a.verbose, "verbose", "v", "log more; twice: log everything")
	complete(root, "directory", cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs))
	complete(root, "project", a.completion(projectWords, cobra.ShellCompDirectiveDefault))
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	for _, group := range a.commands() {
		root.AddGroup(&cobra.Group{ID: group.title, Title: group.title + ":"})
		for _, cmd := range group.commands {
			cmd.GroupID = group.title
			root.AddCommand(cmd)
		}
	}
	root.AddCommand(a.newNetCmd(), a.newSupervisorCmd(), a.newOwnerCmd())
	addHelp(root)
	return root
}

// group is a heading below which `devvm --help` and docs/commands.md have some commands.
type group struct {
	title    string
	commands []*cobra.Command
}

// setUp is the title of the group that the commands of cobra belong to.
const setUp = "Set up"

// commands are all that users call, in the order that help shows.
func (a *app) commands() []group {
	return []group{
		{"Every day", []*cobra.Command{
			a.newUpCmd(), a.newDownCmd(), a.newRestartCmd(), a.newSuspendCmd(), a.newNukeCmd(), a.newRmCmd(),
			a.newEnvCmd(), takesFiles(a.newDockerCmd()), a.newSSHCmd(), takesFiles(a.newExecCmd()), takesFiles(a.newCpCmd()),
		}},
		{"Look inside", []*cobra.Command{a.newStatusCmd(), a.newInspectCmd(), a.newLsCmd(), a.newLogsCmd()}},
		{"Network", []*cobra.Command{a.newPortsCmd(), a.completes(a.newExposeCmd(), a.portWords), a.newEgressCmd()}},
		{"Disks and images", []*cobra.Command{a.newSnapshotCmd(), a.newImageCmd(), a.newTemplateCmd(), a.newDfCmd(), a.newPruneCmd()}},
		{setUp, []*cobra.Command{
			a.newDoctorCmd(), takesFiles(a.newAuditCmd()), a.newInitCmd(), a.newConfigCmd(), a.newTrustCmd(), a.newMoveCmd(), a.newVersionCmd(),
		}},
	}
}

// on is the value of a flag for what a command does anyway.
type on struct{}

func (on) String() string { return "true" }

func (on) Type() string { return "bool" }

func (on) Set(text string) error {
	yes, err := strconv.ParseBool(text)
	if err == nil && !yes {
		err = errors.New("it is always on")
	}
	return err
}

// alwaysOn gives a command a flag for what it does anyway, which other tools have a flag for. It
// cannot be turned off.
func alwaysOn(cmd *cobra.Command, name, shorthand, usage string) {
	f := cmd.Flags().VarPF(on{}, name, shorthand, usage)
	f.NoOptDefVal, f.DefValue = "true", "" // help shows no default
}

// log is the logger of a command in the foreground.
func (a *app) log() *slog.Logger {
	level := slog.LevelWarn
	switch {
	case a.verbose == 1:
		level = slog.LevelInfo
	case a.verbose > 1:
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.Err, &slog.HandlerOptions{Level: level}))
}

// environment is what decides devvm's directories.
func (a *app) environment() state.Environment {
	home, err := os.UserHomeDir()
	if err != nil {
		home = ""
	}
	return state.Environment{Getenv: a.getenv, UID: os.Getuid(), Home: home}
}

// service makes the service that carries out the verbs.
func (a *app) service() (*project.Service, error) {
	env := a.environment()
	dirs, err := state.NewDirs(env)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	log := a.log()
	rule := trust.For(env.UID, trust.NewList(dirs.Trusted()))
	loadConfig := func(dir string) (config.Config, error) {
		host := config.HostEnv(dirs.Config, a.getenv)
		host.Trust = &rule
		return config.Load(dir, host)
	}
	return &project.Service{
		Env: machine.Env{
			Dirs:         dirs,
			Images:       image.NewStore(filepath.Join(dirs.Data, "images"), log),
			Templates:    template.NewStore(filepath.Join(dirs.Data, "templates"), log),
			Accelerators: vm.NewAccelStore(filepath.Join(dirs.Cache, "accel.json")),
			Exe:          exe,
			Version:      version(),
			Zone:         project.TimeZone(a.getenv, "/etc/localtime"),
			Kernel:       a.kernel,
			Slow:         a.slow,
			Note:         func(text string) { a.Note("%s", text) },
			Free:         a.free,
			Routes:       a.routes,
			Log:          log,
		},
		Open: func(ctx context.Context) (vm.Hypervisor, error) {
			cfg, err := loadConfig("") // which libvirt: no project has a say in it
			if err != nil {
				return nil, err
			}
			return a.open(ctx, vm.Options{
				URI: cfg.URI, RuntimeDir: state.RuntimeHome(env),
				Sandbox: vm.Sandbox{Program: exe, Dir: filepath.Join(dirs.Data, "sandbox")},
			}, log)
		},
		Config: loadConfig,
		Trust:  rule,
		Home:   env.Home,
		Halt:   a.halt,
	}, nil
}

// projectDir is the directory that the command was started in, or -C's.
func (a *app) projectDir() (string, error) {
	if a.dir != "" {
		return a.dir, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", &ui.Error{
			Code: ui.ExitUsage, Msg: "the current directory is gone", Err: err,
			Hint: "go to a project's directory, or name one with -C or --project (devvm ls)",
		}
	}
	return dir, nil
}

// find returns the project that the flags and the current directory name.
func (a *app) find(ctx context.Context, s *project.Service) (state.Project, error) {
	dir, err := a.projectDir()
	if err != nil && (a.project == "" || strings.HasPrefix(a.project, ".")) { // else it need not be known
		return state.Project{}, err
	}
	if a.project == "" {
		p, err := s.Find(dir)
		if bad, ok := errors.AsType[*trust.Error](err); ok {
			return p, &ui.Error{Code: ui.ExitUsage, Err: err, Hint: bad.Hint()}
		}
		if err != nil {
			return p, &ui.Error{Code: ui.ExitUsage, Err: err, Hint: "go to a project's directory, or name one with -C or --project"}
		}
		if here, err := state.New(dir); err == nil && here.Dir != p.Dir && s.HasVM(here) && !a.noted {
			a.noted = true
			a.Note("this is project %s, because of the devvm.toml in %s; this directory has a VM too: --project %s", p.Name, p.Dir, here.Name)
		}
		return p, nil
	}
	return named(ctx, s, dir, a.project)
}

// named returns the project that a word names in a directory: a path or a project's name.
func named(ctx context.Context, s *project.Service, dir, word string) (state.Project, error) {
	path := word
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return state.New(path)
	} else if strings.ContainsRune(word, filepath.Separator) {
		if err == nil {
			err = fs.ErrInvalid
		}
		return state.Project{}, &ui.Error{Code: ui.ExitUsage, Msg: "--project " + word + " is not a directory", Err: err}
	}
	return s.Lookup(ctx, word)
}

// patienceHint is how long an error may take to find the right hint, if libvirt does not answer.
const patienceHint = 3 * time.Second

// isProject tells whether a word names a project, as --project takes it.
func (a *app) isProject(ctx context.Context, word string) bool {
	s, err := a.service()
	if err != nil {
		return false
	}
	dir, err := a.projectDir()
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, patienceHint)
	defer cancel()
	_, err = named(ctx, s, dir, word)
	return err == nil
}

// format is how progress is shown.
func (a *app) format() ui.Format {
	if a.json {
		return ui.FormatJSON
	}
	return ui.FormatText
}

// withService runs f with the service.
func (a *app) withService(f func(ctx context.Context, s *project.Service, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		s, err := a.service()
		if err != nil {
			return err
		}
		return f(cmd.Context(), s, args)
	}
}

// withProjects is withService for a command that talks to the VMs of several projects.
func (a *app) withProjects(f func(ctx context.Context, s *project.Service, args []string) error) func(*cobra.Command, []string) error {
	return a.withService(func(ctx context.Context, s *project.Service, args []string) error {
		if err := s.Dirs.SecureAll(); err != nil {
			return err
		}
		return f(ctx, s, args)
	})
}

// withProject runs f for the project at hand.
func (a *app) withProject(f func(ctx context.Context, s *project.Service, p state.Project) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		s, err := a.service()
		if err != nil {
			return err
		}
		p, err := a.find(cmd.Context(), s)
		if err != nil {
			return err
		}
		if err := s.Dirs.Secure(p.Name); err != nil {
			return err
		}
		return f(cmd.Context(), s, p)
	}
}

// withProgress runs f with a progress display.
func (a *app) withProgress(ctx context.Context, f func(pr *ui.Progress) error) error {
	pr := a.Progress(ctx, a.format())
	defer pr.Close()
	return f(pr)
}
