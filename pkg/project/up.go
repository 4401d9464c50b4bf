package project

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/devvm/devvm/pkg/daemon"
	"github.com/devvm/devvm/pkg/state"

	"golang.org/x/sync/errgroup"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/disk"
	"github.com/devvm/devvm/pkg/engine"
	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/image"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/subnet"
	"github.com/devvm/devvm/pkg/supervisor"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/vm"
)

// kernelMarker is what the guest prints on its console when its kernel runs.
const kernelMarker = "devvm: kernel up"

// Up gives the project a running VM whose engine answers on docker.sock. What
// is there already is kept; what an earlier run left half done is completed.
func (s *Service) Up(ctx context.Context, p state.Project, pr *ui.Progress) error {
	f := s.Dirs.Files(p.Name)
	cfg, err := s.checkConfig(p, !state.Exists(f.Provisioned())) // before anything is made
	if err == nil && (!state.Exists(f.Disk()) || f.IsBegun()) {
		err = s.checkImage(ctx, cfg)
	}
	if err == nil {
		err = s.checkAgreed(p, cfg, nil)
	}
	if err != nil {
		return err
	}
	s.rememberHost(ctx)
	s.sweep(ctx)
	lock, err := f.Acquire(ctx, "up", func(who string) {
		pr.Note("waiting for another devvm (%s) that is at work on this project", who)
	})
	if err != nil {
		return err
	}
	defer lock.Close()
	hv, err := s.Open(ctx)
	if err != nil {
		return err
	}
	defer hv.Close()
	return s.up(ctx, hv, p, &steps{Progress: pr})
}

// checkConfig reads the project's configuration and finds what is wrong with it, for a VM
// that is yet to be provisioned or for any.
func (s *Service) checkConfig(p state.Project, provision bool) (config.Config, error) {
	if !state.Exists(p.Dir) {
		return config.Config{}, &ui.Error{
			Msg:  fmt.Sprintf("the project's directory is gone: %s", p.Dir),
			Hint: fmt.Sprintf("where it is now, take its VM over (devvm move %s); bring it back; or remove its VM: devvm rm --project %s", p.Name, p.Name),
		}
	}
	cfg, err := s.Config(p.Dir)
	if err == nil && provision {
		err = cfg.CheckProvision()
	}
	return cfg, err
}

// checkImage finds what is wrong with the image and the disk of a VM that is yet to be
// made. An image that is yet to be built is as good as any.
func (s *Service) checkImage(ctx context.Context, cfg config.Config) error {
	img, err := s.Images.Resolve(ctx, cfg.Image)
	switch {
	case err == nil:
		return cfg.CheckDisk(img.DiskSize)
	case errors.Is(err, image.ErrNotFound) && image.RecipeDigest(cfg.Image) != "":
		return nil
	}
	return explainImage(cfg, err)
}

// explainImage says what is wrong with the image of a configuration.
func explainImage(cfg config.Config, err error) error {
	if errors.Is(err, image.ErrDamaged) {
		return &ui.Error{
			Err:  err,
			Hint: "look which one with: devvm image ls; put it right, or remove it (devvm image rm), and devvm image build or import it again",
		}
	}
	if !errors.Is(err, image.ErrNotFound) && !errors.Is(err, image.ErrAmbiguous) {
		return err
	}
	return &ui.Error{Code: ui.ExitUsage, Err: err, Msg: cfg.Origin("image"), Hint: "see what there is with: devvm image ls"}
}

// up is Up under the project's lock.
func (s *Service) up(ctx context.Context, hv vm.Hypervisor, p state.Project, pr *steps) error {
	if err := s.finishMove(ctx, hv, p, pr.Progress); err != nil {
		return err
	}
	dom, err := s.find(ctx, hv, p)
	if err != nil && !errors.Is(err, vm.ErrNotFound) {
		return err
	}
	if f := s.Dirs.Files(p.Name); f.IsLost(err == nil) {
		return errLost(f, dom.State == vm.StateRunning)
	}
	if above, ok := s.above(p); ok && err != nil {
		pr.Note("%s gets a VM of its own; to use that of the directory above: --project %s", p.Dir, above.Dir)
	}
	if err != nil {
		if former, ok := s.former(p); ok {
			pr.Note("%s gets a new VM; to %s", p.Dir, takeOverHint(former))
		}
	}
	if s.Replaced(p) {
		pr.Note("%s is not the directory that this VM was made for, which was renamed or removed: to give the VM to that one, run devvm move there", p.Dir)
	}
	return s.upFrom(ctx, hv, p, dom, pr)
}

// upFrom is up for a VM as it was found; the zero Domain if there is none.
func (s *Service) upFrom(ctx context.Context, hv vm.Hypervisor, p state.Project, dom vm.Domain, pr *steps) error {
	cfg, err := s.granted(p)
	if err != nil {
		return err
	}
	f := s.Dirs.Files(p.Name)
	if err := s.settle(p, cfg); err != nil {
		return err
	}
	if err := s.makeDirs(f); err != nil {
		return err
	}
	host, err := hv.Host(ctx)
	if err != nil {
		return err
	}
	if dom, err = s.outlast(ctx, hv, p, dom, pr.Progress); err != nil {
		return err
	}
	if isStopping(f, dom) {
		if dom, err = s.finishDown(ctx, hv, p, dom, pr.Progress); err != nil {
			return err
		}
	}
	b := boot{
		Env: &s.Env, hv: hv, host: host, project: p, cfg: cfg, files: f, progress: pr, accel: dom.Accel,
		sharing: projectSharing{s, p, cfg}, cold: s.Cold,
	}
	// A VM whose engine has never answered goes on only if it runs, and as it should.
	runs := dom.State == vm.StateRunning || dom.State == vm.StatePaused
	if f.IsBegun() && !(runs && dom.Config == cfg.StartHash()) {
		// Its supervisor is who may find just now that its engine answers.
		if err := s.daemons(p).StopSupervisor(ctx); err != nil {
			return err
		}
	}
	if f.IsBegun() && !(runs && dom.Config == cfg.StartHash()) {
		if state.Exists(f.Disk()) {
			pr.Note("the engine of the VM that is there has never answered: making it anew")
		}
		if err := b.discard(ctx); err != nil {
			return err
		}
		if err := s.makeDirs(f); err != nil {
			return err
		}
		dom = vm.Domain{}
	}
	if err := f.NoteDir(p.Dir); err != nil {
		return err
	}
	if err := b.mendShares(); err != nil {
		return err
	}
	err = b.run(ctx, dom)
	// A VM that ran may just be going off: libvirt knows only now, or a suspend that was
	// killed had only just asked for it.
	for again := 0; again < 2 && (errors.Is(err, errWentOff) || errors.Is(err, vm.ErrNotRunning)) && ctx.Err() == nil; again++ {
		pr.Fail(err)
		if dom, err = s.find(ctx, hv, p); err == nil {
			dom, err = s.outlast(ctx, hv, p, dom, pr.Progress)
		}
		if err == nil {
			err = b.run(ctx, dom)
		}
	}
	if err != nil {
		return err
	}
	if err := b.provision(ctx); err != nil {
		return err
	}
	pr.Done()
	return nil
}

// run brings a VM that was found in some state to where its engine answers.
func (b *boot) run(ctx context.Context, dom vm.Domain) error {
	switch dom.State {
	case vm.StateSaved:
		b.noteChanges(ctx, dom)
		return b.start(ctx, true)
	case vm.StateRunning:
		return b.attend(ctx, dom)
	case vm.StatePaused:
		return b.unpause(ctx, dom)
	}
	return b.start(ctx, false)
}

// boot is one run of up.
type boot struct {
	*Env
	hv       vm.Hypervisor
	host     vm.Host
	project  state.Project
	cfg      config.Config
	files    state.Files
	progress *steps
	accel    vm.Accel
	sharing  sharing      // nil: the VM has nothing of the host's
	cold     bool         // boot, do not fork a template
	forked   bool         // the VM has just been made without any container
	attends  bool         // the VM ran before
	backing  []string     // what the disk lies on, the uppermost first
	pools    subnet.Pools // of the engine's networks; nil: not chosen yet
}

// attend brings a running VM's helpers back to life and waits for its engine.
func (b *boot) attend(ctx context.Context, dom vm.Domain) error {
	if err := b.checkKeys("devvm down; devvm up"); err != nil {
		return err
	}
	b.attends = true
	b.noteChanges(ctx, dom)
	if img, err := b.Images.Resolve(ctx, dom.Image); err == nil {
		b.noteImage(img)
		if err := noteAddress(b.files, img); err != nil {
			return err
		}
	}
	var net usernet.Status
	err := daemon.Outwait(ctx, b.files.NetLock(), errBusy, func() (err error) {
		net, err = b.askNet(ctx)
		return err
	})
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == nil:
		err = b.enforce(ctx, net)
	default:
		err = b.rewire(ctx)
	}
	if err != nil {
		return err
	}
	if err := b.daemons(b.project).StartSupervisor(ctx, dom.Accel == vm.AccelTCG); err != nil {
		return err
	}
	if err := b.await(ctx, nil); err != nil {
		return err
	}
	b.tellClashes(ctx)
	return nil
}

// errBusy says that the VM's network process runs and does not answer.
var errBusy = errors.New("the VM's network process is busy")

// askNet asks the VM's network process how it is: errBusy, or usernet.ErrNoNetwork if nobody
// listens.
func (b *boot) askNet(ctx context.Context) (usernet.Status, error) {
	status, err := usernet.NewDialer(b.files.DialSocket()).Status(ctx)
	if err != nil && !errors.Is(err, usernet.ErrNoNetwork) {
		err = fmt.Errorf("%w: %w", errBusy, err)
	}
	return status, err
}

// unpause lets a VM go on that QEMU has stopped, most often because the host's
// disk was full.
func (b *boot) unpause(ctx context.Context, dom vm.Domain) error {
	if dom.Halt == vm.HaltIO {
		if err := b.errFull(b.files); err != nil {
			// Who lets it go on must be there.
			if err := b.daemons(b.project).StartSupervisor(ctx, dom.Accel == vm.AccelTCG); err != nil {
				b.Log.Warn("start the supervisor of a paused VM", "err", err)
			}
			return err
		}
	}
	b.progress.Start("resume", "resume the paused VM"+because(dom.Reason))
	if err := b.hv.Start(ctx, b.project.Name); err != nil {
		return &ui.Error{
			Msg:  "the VM is paused" + because(dom.Reason) + " and does not go on",
			Hint: "make room on the disk if it is full and try again, or start it afresh with: devvm down && devvm up",
			Err:  err,
		}
	}
	return b.attend(ctx, dom)
}

// noteChanges says which settings a VM that goes on as it is does not have yet.
func (b *boot) noteChanges(ctx context.Context, dom vm.Domain) {
	if dom.Config == b.cfg.StartHash() {
		return
	}
	if changes := b.changes(ctx, dom); len(changes) > 0 {
		b.progress.Note("changed settings take effect at the next start (devvm down && devvm up): %s", strings.Join(changes, ", "))
	}
}

// changes names the settings in which a VM differs from devvm.toml.
func (b *boot) changes(ctx context.Context, dom vm.Domain) []string {
	var out []string
	if dom.CPUs != b.cfg.CPUs {
		out = append(out, fmt.Sprintf("cpus %d → %d", dom.CPUs, b.cfg.CPUs))
	}
	if dom.Memory != b.cfg.Memory {
		out = append(out, fmt.Sprintf("memory %s → %s", ui.Size(dom.Memory), ui.Size(b.cfg.Memory)))
	}
	if info, err := disk.Stat(ctx, b.files.Disk()); err == nil {
		switch has := info.VirtualSize; {
		case has > b.cfg.Disk:
			b.noteDisk(has)
		case has < b.cfg.Disk:
			out = append(out, fmt.Sprintf("disk %s → %s", ui.Size(has), ui.Size(b.cfg.Disk)))
		}
	}
	daemon, err := os.ReadFile(filepath.Join(b.files.Credentials(), credentialDaemon))
	pools, _ := subnet.Of(daemon) // others are no change of devvm.toml's
	if err == nil && !bytes.Equal(daemon, b.engineConfig(pools)) {
		out = append(out, "docker.daemon")
	}
	if err != nil && len(out) == 0 { // a cloud image's has it elsewhere
		out = append(out, "perhaps docker.daemon")
	}
	has, err := readShares(b.files)
	next, nerr := b.wantedShares()
	if err == nil && nerr == nil {
		if !slices.Equal(has.Exports, next.Exports) {
			out = append(out, "mounts")
		}
		if has.Durable != next.Durable || !slices.Equal(has.Ignore, next.Ignore) {
			out = append(out, "share")
		}
	}
	return out
}

// noteDisk says that a disk which is larger than devvm.toml wants it stays so.
func (b *boot) noteDisk(has int64) {
	b.progress.Note("the disk stays at %s: disks only grow (devvm nuke makes a new one)", ui.Size(has))
}

// rewire gives a running VM a new network process. QEMU 8.0 and later comes
// back to the socket by itself; an older one must be saved and restored.
func (b *boot) rewire(ctx context.Context) error {
	b.progress.Start("network", "the VM's network process does not answer: starting another")
	if err := b.daemons(b.project).StopNetwork(ctx); err != nil {
		return err
	}
	if err := b.daemons(b.project).StartNetwork(ctx, b.cfg.Policy(), b.host); err != nil {
		return err
	}
	if vm.Reconnects(b.host) {
		return nil
	}
	b.progress.Note("this QEMU cannot reconnect: saving and resuming the VM, which takes some seconds")
	if err := b.hv.Save(ctx, b.project.Name); err != nil {
		return err
	}
	// The network process ended with the QEMU that it never saw, or waits; the
	// new QEMU must find one.
	if _, err := usernet.NewDialer(b.files.DialSocket()).Status(ctx); err != nil {
		if err := b.daemons(b.project).StartNetwork(ctx, b.cfg.Policy(), b.host); err != nil {
			return err
		}
	}
	if err := b.hv.Start(ctx, b.project.Name); err != nil {
		return err
	}
	return nil
}

// start gives the project a running VM: it forks a new one, and boots or resumes
// one that is there.
func (b *boot) start(ctx context.Context, saved bool) error {
	b.attends = false
	if state.Exists(b.files.Disk()) {
		if err := b.checkRoomToRun(b.files); err != nil {
			return err
		}
	}
	if err := state.Unmark(b.files.Stopping()); err != nil {
		return err
	}
	if err := b.files.NoteDir(b.project.Dir); err != nil {
		return err
	}
	settle := b.settleShares
	if saved {
		settle = b.checkShares // a resumed VM has mounted what it has
	}
	if err := settle(); err != nil {
		return err
	}
	img, err := b.image(ctx)
	if err != nil {
		return err
	}
	if err := b.detach(ctx, saved); err != nil {
		return err
	}
	if saved {
		err := b.resume(ctx, img)
		if err == nil || ctx.Err() != nil || !errors.Is(err, errNoResume) {
			return err
		}
		b.progress.Fail(err)
		b.progress.Warn("%v: booting it afresh", err)
		if err := b.hv.DropSaved(ctx, b.project.Name); err != nil {
			return err
		}
		if err := errors.Join(b.daemons(b.project).Stop(ctx), b.settleShares()); err != nil {
			return err
		}
	}
	if !state.Exists(b.files.Disk()) {
		if err := b.checkRoomForVM(); err != nil {
			return err
		}
	}
	verdict := b.Accel.Choose(b.host)
	if verdict.Note != "" && !b.isTemplate(b.project.Dir) { // said already
		b.progress.Note("%s", verdict.Note)
	}
	b.accel = verdict.Accel
	if !state.Exists(b.files.Disk()) && !b.cold && img.Forks {
		if err := b.cfg.CheckDisk(img.DiskSize); err != nil {
			return err
		}
		err := b.fork(ctx, img)
		if err == nil || ctx.Err() != nil || !errors.Is(err, errNoTemplate) || state.Exists(b.files.Disk()) && !b.files.IsBegun() {
			return err
		}
		b.progress.Fail(err)
		b.progress.Warn("%v: booting instead, which takes longer", err)
		b.forked = false
		if err := errors.Join(b.discard(ctx), b.makeDirs(b.files)); err != nil {
			return err
		}
	}
	if !state.Exists(b.files.Disk()) { // what libvirt still knows is of a VM that is gone
		if err := forget(ctx, b.hv, b.project); err != nil {
			return err
		}
	}
	if err := b.prepare(ctx, img); err != nil {
		return err
	}
	untried := b.accel == vm.AccelKVM && !verdict.Proven
	err = b.launch(ctx, img)
	if errors.Is(err, machine.ErrNoKernel) && !untried {
		b.progress.Fail(err)
		b.progress.Warn("%v: starting the VM again", err)
		err = b.relaunch(ctx, img)
	}
	if hung := errors.Is(err, machine.ErrNoKernel); b.accel == vm.AccelKVM && (hung || errors.Is(err, vm.ErrAccel)) {
		why := err.Error()
		if _, words, found := strings.Cut(why, vm.ErrAccel.Error()+": "); found {
			why = words
		}
		b.progress.Fail(err)
		b.progress.Warn("KVM does not work here (%s): using software emulation, which is much slower", why)
		b.accel = vm.AccelTCG
		if err = b.relaunch(ctx, img); err == nil && (untried || !hung) {
			if rerr := b.Accel.Record(b.host, false, why); rerr != nil {
				b.Log.Warn("remember that KVM does not work", "err", rerr)
			}
		}
	}
	if err != nil {
		return err
	}
	if b.accel == vm.AccelKVM {
		if err := b.Accel.Record(b.host, true, ""); err != nil {
			b.Log.Warn("remember that KVM works", "err", err)
		}
	}
	return nil
}

// detach ends what served the VM's former run: a network process that waits for a QEMU
// that is gone, and a supervisor that may not know yet that its link is dead. That of
// a suspended VM stays, to tell clients so.
func (b *boot) detach(ctx context.Context, saved bool) error {
	if !saved {
		return b.daemons(b.project).Stop(ctx)
	}
	if err := b.daemons(b.project).Rest(ctx); err != nil {
		return err
	}
	return b.daemons(b.project).StopNetwork(ctx)
}

// prepare makes sure that the VM's files are there: disk, keys, credentials.
func (b *boot) prepare(ctx context.Context, img image.Image) error {
	size := b.cfg.Disk
	if state.Exists(b.files.Disk()) {
		info, err := disk.Stat(ctx, b.files.Disk())
		if err != nil {
			return err
		}
		switch {
		case size > info.VirtualSize:
			b.progress.Note("growing the disk from %s to %s", ui.Size(info.VirtualSize), ui.Size(size))
			if err := disk.Grow(ctx, b.files.Disk(), size); err != nil {
				return err
			}
		case size < info.VirtualSize:
			b.noteDisk(info.VirtualSize)
		}
	} else {
		if err := b.cfg.CheckDisk(img.DiskSize); err != nil {
			return err
		}
		if err := b.files.MarkNew(); err != nil {
			return err
		}
		b.progress.Start("disk", "making a disk of "+ui.Size(size))
		b.backing = []string{img.Disk()}
		if err := disk.CreateOverlay(ctx, b.files.Disk(), img.Disk(), size); err != nil {
			return err
		}
	}
	if _, err := guest.LoadKeys(b.files.Keys()); err != nil {
		if _, err := guest.GenerateKeys(b.files.Keys()); err != nil {
			return fmt.Errorf("make keys: %w", err)
		}
	}
	return b.writeCredentials(img)
}

// image finds the image of the VM: the one that its disk was made from, else
// the one of the configuration, which is built when it is not there yet.
func (b *boot) image(ctx context.Context) (image.Image, error) {
	if state.Exists(b.files.Disk()) {
		backing, err := below(ctx, b.files.Disk())
		if err != nil {
			return image.Image{}, errDisk(b.files, err)
		}
		if err := b.checkBacking(backing); err != nil {
			return image.Image{}, err
		}
		b.backing = backing
		digest := imageOf(backing)
		img, err := b.Images.Resolve(ctx, digest)
		if errors.Is(err, image.ErrNotFound) || errors.Is(err, image.ErrDamaged) {
			what := "gone"
			if errors.Is(err, image.ErrDamaged) {
				what = "damaged"
			}
			return img, &ui.Error{
				Msg:  fmt.Sprintf("the image that this VM's disk is based on is %s (%s)", what, filepath.Dir(backing[len(backing)-1])),
				Hint: "bring it back (devvm image import), or start afresh with: devvm nuke",
				Err:  err,
			}
		}
		if err == nil {
			b.noteImage(img)
		}
		return img, err
	}
	return b.newImage(ctx)
}

// noteImage says that a VM is not of the image that devvm.toml asks for.
func (b *boot) noteImage(img image.Image) {
	if b.cfg.Image != img.Name && !strings.HasPrefix(img.Digest, b.cfg.Image) {
		b.progress.Note("%s asks for image %s; this VM was made from %s and keeps it until: devvm nuke", config.FileName, b.cfg.Image, img.Name)
	}
}

// newImage finds the image of the configuration, which is built when it is not
// there yet.
func (b *boot) newImage(ctx context.Context) (image.Image, error) {
	recipe := image.RecipeDigest(b.cfg.Image)
	img, err := b.Images.Resolve(ctx, b.cfg.Image)
	if err == nil && img.Recipe != "" && recipe != "" && img.Recipe != recipe {
		b.progress.Note("this devvm comes with a newer recipe of image %s; build it with: devvm image build %s", img.Name, img.Name)
	}
	switch {
	case err == nil:
		return img, nil
	case !errors.Is(err, image.ErrNotFound), recipe == "":
		return img, explainImage(b.cfg, err)
	}
	b.progress.Start("image", "building the base image "+b.cfg.Image+" (once)")
	log, err := os.OpenFile(filepath.Join(b.files.Logs, "image-build.log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return img, fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	img, err = b.Images.Build(ctx, image.BuildOptions{
		Name: b.cfg.Image, Log: log,
		Progress: func(step string) { b.progress.running.Detail("%s", step) },
	})
	if err != nil {
		return img, &ui.Error{
			Msg:  "the base image could not be built",
			Hint: "see what this host lacks with: devvm doctor" + see(log.Name(), "the build's log: "+log.Name()),
			Err:  err,
		}
	}
	return img, nil
}

// imageOf returns the digest of the image below a disk: images stand in
// directories named by their digests.
func imageOf(backing []string) string {
	if len(backing) == 0 {
		return ""
	}
	return filepath.Base(filepath.Dir(backing[len(backing)-1]))
}

// Names of the guest's system credentials; images/debian-13 reads them.
const (
	credentialKeys     = "devvm.authorized_keys"
	credentialHostKey  = "devvm.host_key"
	credentialHostname = "devvm.hostname"
	credentialTimezone = "devvm.timezone"
	credentialDaemon   = "devvm.daemon.json"
	credentialShare    = "devvm.share"
	// credentialMachine is also how a fork knows that it is one: its template's
	// was another.
	credentialMachine = "system.machine_id"
)

// credentialSizes are the sizes, in bytes, to which credentials are padded with line
// ends. A fork's kernel knows its template's sizes and reads its own with them.
var credentialSizes = map[string]int{
	credentialKeys: 512, credentialHostKey: 1024, credentialHostname: 128, credentialTimezone: 128,
	credentialShare: 8192,
}

// seed is the path of the seed that sets up a cloud image; "" for our own
// images, which read credentials.
func (b *boot) seed(img image.Image) string {
	if !img.CloudInit {
		return ""
	}
	return filepath.Join(b.files.Credentials(), "seed.iso")
}

// writeCredentials writes what the guest is told at its boot. What is to be kept is written
// only if it is not there.
func (b *boot) writeCredentials(img image.Image, keep ...string) error {
	if err := noteAddress(b.files, img); err != nil {
		return err
	}
	keys, err := guest.LoadKeys(b.files.Keys())
	if err != nil {
		return fmt.Errorf("load keys: %w", err)
	}
	if img.CloudInit {
		seed, err := image.Seed(image.Guest{
			InstanceID:     b.project.UUID,
			Hostname:       b.project.Name,
			Timezone:       b.Zone,
			AuthorizedKeys: keys.AuthorizedKey(),
			HostKey:        string(keys.HostKeyPEM()),
			HostKeyPublic:  keys.HostPublicKey(),
			DaemonJSON:     string(b.daemonJSON()),
		})
		if err != nil {
			return err
		}
		return image.WriteSeed(b.seed(img), seed)
	}
	machine, err := b.machineID()
	if err != nil {
		return err
	}
	has, err := readShares(b.files)
	if err != nil {
		return err
	}
	all := map[string][]byte{
		credentialMachine:  machine,
		credentialKeys:     []byte(keys.AuthorizedKey()),
		credentialHostKey:  keys.HostKeyPEM(),
		credentialHostname: []byte(b.project.Name),
		credentialTimezone: []byte(b.Zone),
	}
	if path := filepath.Join(b.files.Credentials(), credentialDaemon); !slices.Contains(keep, credentialDaemon) || !state.Exists(path) {
		all[credentialDaemon] = b.daemonJSON()
	}
	if img.Mounts {
		all[credentialShare] = credentialOf(has.Exports)
	}
	var writing errgroup.Group // each waits for the disk
	for name, content := range all {
		path := filepath.Join(b.files.Credentials(), name)
		if slices.Contains(keep, name) && state.Exists(path) {
			continue
		}
		writing.Go(func() error {
			for len(content) < credentialSizes[name] {
				content = append(content, '\n')
			}
			return file.Replace(path, content, 0o600)
		})
	}
	return writing.Wait()
}

// daemonJSON configures the engine. Containers on its own bridge have the link's MTU: under
// emulation each packet costs, and with Docker's 1500 they send a quarter of what they can.
func (b *boot) daemonJSON() []byte { return b.engineConfig(b.choosePools()) }

func (b *boot) engineConfig(pools subnet.Pools) []byte {
	if pools == nil {
		return b.cfg.DaemonJSON(usernet.DefaultMTU, nil)
	}
	return b.cfg.DaemonJSON(usernet.DefaultMTU, pools)
}

// machineID returns the VM's machine id (machine-id(5)), which it keeps for life.
func (b *boot) machineID() ([]byte, error) {
	id, err := os.ReadFile(filepath.Join(b.files.Credentials(), credentialMachine))
	if err == nil {
		return id, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read machine id: %w", err)
	}
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails
	return hex.AppendEncode(nil, random[:]), nil
}

// spec is the VM as the configuration wants it.
func (b *boot) spec(img image.Image) vm.Spec {
	credentials := map[string]string{}
	if !img.CloudInit {
		for _, name := range []string{credentialMachine, credentialKeys, credentialHostKey, credentialHostname, credentialTimezone, credentialDaemon} {
			credentials[name] = filepath.Join(b.files.Credentials(), name)
		}
		if img.Mounts {
			credentials[credentialShare] = filepath.Join(b.files.Credentials(), credentialShare)
		}
	}
	return vm.Spec{
		Name:        b.project.Name,
		UUID:        b.project.UUID,
		Project:     b.project.Dir,
		Config:      b.cfg.StartHash(),
		Image:       img.Digest,
		CPUs:        b.cfg.CPUs,
		Memory:      b.cfg.Memory,
		Accel:       b.accel,
		Disk:        b.files.Disk(),
		Backing:     b.backing,
		Seed:        b.seed(img),
		Kernel:      img.Kernel(),
		Initrd:      img.Initrd(),
		Cmdline:     img.Cmdline,
		NetSocket:   b.files.NetSocket(),
		MAC:         guestMAC,
		MTU:         usernet.DefaultMTU,
		Console:     b.files.Console(),
		Credentials: credentials,
	}
}

// launch defines and starts the VM and waits for its engine. An error wraps
// vm.ErrAccel when the accelerator is to blame.
func (b *boot) launch(ctx context.Context, img image.Image) error {
	b.progress.Start("define", "define the VM")
	if err := b.hv.Define(ctx, b.spec(img)); err != nil {
		return err
	}
	b.progress.Start("start", "start the VM")
	if err := b.daemons(b.project).StartNetwork(ctx, b.cfg.Policy(), b.host); err != nil {
		return err
	}
	console, err := follow(b.files.Console(), kernelMarker)
	if err != nil {
		return err
	}
	defer console.Close()
	if err := b.hv.Start(ctx, b.project.Name); err != nil {
		_ = b.daemons(b.project).StopNetwork(context.WithoutCancel(ctx))
		return err
	}
	if err := b.daemons(b.project).StartSupervisor(ctx, b.accel == vm.AccelTCG); err != nil {
		return err
	}
	return b.await(ctx, console)
}

// relaunch is launch, after what a launch that came to nothing has left.
func (b *boot) relaunch(ctx context.Context, img image.Image) error {
	if err := b.hv.Destroy(ctx, b.project.Name); err != nil {
		return err
	}
	if err := b.daemons(b.project).Stop(ctx); err != nil {
		return err
	}
	return b.launch(ctx, img)
}

// resume lets a suspended VM go on and waits for its engine. Whatever fails, the memory
// stays, unless it is errNoResume.
func (b *boot) resume(ctx context.Context, img image.Image) error {
	b.progress.Start("resume", "resume the suspended VM")
	if err := b.checkKeys("devvm down --discard; devvm up"); err != nil {
		return err
	}
	// QEMU reads them again. The guest has read them; its engine's settings are still those.
	if err := b.writeCredentials(img, credentialDaemon); err != nil {
		return err
	}
	if err := b.daemons(b.project).StartNetwork(ctx, b.cfg.Policy(), b.host); err != nil {
		return err
	}
	if err := b.hv.Start(ctx, b.project.Name); err != nil {
		_ = b.daemons(b.project).StopNetwork(context.WithoutCancel(ctx))
		if errors.Is(err, vm.ErrMemory) {
			return fmt.Errorf("%w: %w", errNoResume, err)
		}
		return errKept(err)
	}
	if err := b.daemons(b.project).StartSupervisor(ctx, b.accel == vm.AccelTCG); err != nil {
		return err
	}
	if err := b.await(ctx, nil); err != nil {
		return err
	}
	b.tellClashes(ctx)
	return nil
}

// errKept explains why a suspended VM stays so.
func errKept(err error) error {
	hint := "mend that, then: devvm up"
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		hint = "make room (devvm df, devvm prune), then: devvm up"
	case errors.Is(err, syscall.ENOMEM):
		hint = "end what else takes this host's memory, then: devvm up"
	case errors.Is(err, vm.ErrConnectionLost), errors.Is(err, vm.ErrNoLibvirt):
		hint = "try again: devvm up (what this host lacks: devvm doctor)"
	case errors.Is(err, vm.ErrAccel):
		hint = "let KVM work again (devvm doctor), then: devvm up"
	}
	return &ui.Error{
		Msg:  "the VM could not be resumed; it stays suspended, with its memory",
		Hint: hint + "\nor boot it without its memory, as after a power cut: devvm down --discard; devvm up",
		Err:  err,
	}
}

// checkKeys refuses to go on with a guest that nobody could log in to: it has the keys of its
// boot. Afresh are the commands that boot it.
func (b *boot) checkKeys(afresh string) error {
	if _, err := guest.LoadKeys(b.files.Keys()); err != nil {
		return &ui.Error{
			Msg:  "the SSH keys of the VM that is there cannot be read, and it has no others: " + b.files.Keys(),
			Hint: "put them back, or boot it with new ones: " + afresh,
			Err:  err,
		}
	}
	return nil
}

// errNoResume says that a suspended VM's memory is of no use any more.
var errNoResume = errors.New("the VM's saved memory cannot be resumed")

// console waits for a line in what a file gains from now on.
type console struct {
	*os.File
	marker string
	seen   []byte
}

// follow opens the console's log at its end; the file is made if need be.
func follow(path, marker string) (*console, error) {
	// QEMU appends to the file as its own user; it makes it if there is none.
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("open console log: %w", err)
	}
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		f.Close()
		return nil, fmt.Errorf("open console log: %w", err)
	}
	return &console{File: f, marker: marker}, nil
}

// shows tells whether the line has come.
func (c *console) shows() bool {
	fresh, err := io.ReadAll(c)
	if err != nil {
		return false
	}
	c.seen = append(c.seen, fresh...)
	return bytes.Contains(c.seen, []byte(c.marker))
}

// await waits until the engine answers. It gives up when the VM stops or
// patience ends. A nil console means that the kernel is up already.
func (b *boot) await(ctx context.Context, con *console) error {
	err := b.watch(ctx, con)
	if errors.Is(err, supervisor.ErrHung) {
		b.progress.Fail(err)
		if err = b.daemons(b.project).StartSupervisor(ctx, b.accel == vm.AccelTCG); err == nil {
			err = b.watch(ctx, con)
		}
	}
	if !errors.Is(err, usernet.ErrNoNetwork) {
		return err
	}
	b.progress.Fail(err)
	if err := b.rewire(ctx); err != nil {
		return err
	}
	return b.watch(ctx, nil)
}

// probeHelpers looks now and then whether the VM's supervisor and network process answer, until
// ctx ends or one never will: supervisor.ErrHung, usernet.ErrNoNetwork.
func (b *boot) probeHelpers(ctx context.Context) error {
	tick := time.NewTicker(probePatience)
	defer tick.Stop()
	var hung, silent time.Time // since when; zero: it has answered
	for gone := false; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		asked := time.Now()
		_, serr := b.daemons(b.project).Supervisor().Status(ctx)
		_, nerr := b.askNet(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(serr, supervisor.ErrHung) {
			if hung = cmp.Or(hung, asked); daemon.Lost(b.files.SupervisorLock(), hung) {
				return serr
			}
		} else {
			hung = time.Time{}
		}
		if nerr != nil {
			silent = cmp.Or(silent, asked)
			nobody := errors.Is(nerr, usernet.ErrNoNetwork)
			if nobody && gone || !nobody && daemon.Lost(b.files.NetLock(), silent) { // once may be one that is being started
				return fmt.Errorf("%w: %w", usernet.ErrNoNetwork, nerr)
			}
			gone = nobody
		} else {
			silent, gone = time.Time{}, false
		}
	}
}

// watch is await, but for a VM whose network process ends meanwhile: that is
// usernet.ErrNoNetwork. A supervisor that stops answering is supervisor.ErrHung.
func (b *boot) watch(ctx context.Context, con *console) error {
	patience := b.Timeout
	if patience == 0 {
		patience = patienceKVM
		if b.accel == vm.AccelTCG {
			patience = patienceTCG
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, machine.ErrPatience)
	defer cancel()
	var owned sync.WaitGroup
	defer owned.Wait()
	defer cancel()

	events := make(chan machine.Event)
	send := func(e machine.Event) bool {
		select {
		case events <- e:
			return true
		case <-ctx.Done():
			return false
		}
	}
	owned.Go(func() {
		err := b.daemons(b.project).Supervisor().Watch(ctx, func(st supervisor.Status) bool { return send(machine.SupervisorStatus{Status: st}) })
		send(machine.WatchEnded{Err: err})
	})
	owned.Go(func() {
		if err := b.probeHelpers(ctx); err != nil {
			send(machine.HelperLost{Err: err})
		}
	})
	var look <-chan time.Time
	if con != nil {
		ticker := time.NewTicker(50 * time.Millisecond)
		defer ticker.Stop()
		look = ticker.C
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	kernel := time.NewTimer(cmp.Or(b.Kernel, patienceKernel))
	defer kernel.Stop()
	var ports <-chan time.Time

	wait, do := machine.NewWait(machine.Options{KernelUp: con == nil, Fresh: b.forked, Version: b.Version})
	for {
		if do.Failed != nil {
			b.progress.Fail(do.Failed)
		}
		if do.Phase != "" {
			b.progress.Start(string(do.Phase), do.Phase.Text())
		}
		if do.Note != "" {
			b.progress.Note("%s", do.Note)
		}
		if do.Done {
			return b.explainWait(do.Err, patience)
		}
		if do.PingEngine {
			owned.Go(func() { send(machine.EngineAnswer{Err: engine.Ping(ctx, b.files.DockerSocket())}) })
		}
		if do.GetDomain { // libvirt may take its time, and has nothing to do with the rest
			owned.Go(func() {
				dom, err := b.hv.Get(ctx, b.project.Name)
				send(machine.Domain{Domain: dom, Err: err})
			})
		}
		if do.AskNetwork {
			owned.Go(func() {
				_, err := b.askNet(ctx)
				send(machine.NetworkAnswer{Err: err})
			})
		}
		if do.AwaitPorts {
			ports = time.After(patienceForPorts)
		}
		var e machine.Event
		select {
		case <-ctx.Done():
			if !errors.Is(context.Cause(ctx), machine.ErrPatience) {
				return ctx.Err()
			}
			e = machine.Deadline{}
		case e = <-events:
			if ctx.Err() != nil { // it comes of the end, and says nothing
				e = nil
			}
		case <-look:
			if con.shows() {
				e, look = machine.ConsoleReady{}, nil
			}
		case <-tick.C:
			e = machine.Tick{}
		case <-kernel.C:
			e = machine.KernelDeadline{}
		case <-ports:
			e = machine.PortsDeadline{}
		}
		do = wait.On(e, time.Now())
	}
}

// explainWait says in words that users see why a wait has ended.
func (b *boot) explainWait(err error, patience time.Duration) error {
	if stopped, ok := errors.AsType[*machine.StoppedError](err); ok {
		return b.died(stopped.Domain, stopped.KernelUp)
	}
	if failed, ok := errors.AsType[*machine.EngineError](err); ok {
		why := ui.Escape(failed.Status.EngineFailed)
		if full := problemFull(failed.Status); full != "" {
			return &ui.Error{Msg: full + "; Docker Engine does not start: " + why, Hint: AdviceFull}
		}
		return &ui.Error{
			Msg:  "Docker Engine does not start in the VM: " + why,
			Hint: "mend [docker.daemon] in devvm.toml if it is to blame, then: devvm down; devvm up",
		}
	}
	if late, ok := errors.AsType[*machine.PatienceError](err); ok {
		if late.Silent > 0 {
			return &ui.Error{
				Msg:  fmt.Sprintf("the VM is slow: it runs, and has said nothing for %s (short of memory, or this host is busy)", late.Silent.Round(time.Second)),
				Hint: fmt.Sprintf("wait longer: devvm up --timeout %s; or boot it again: devvm down; devvm up%s", 2*patience, seeConsole(b.files)),
				Err:  err,
			}
		}
		return &ui.Error{
			Msg:  fmt.Sprintf("the VM runs, but after %s it has not come further than %q%s", patience, late.Phase, because(late.Why)),
			Hint: fmt.Sprintf("if it only needs longer: devvm up --timeout %s%s", 2*patience, seeConsole(b.files)),
			Err:  err,
		}
	}
	if errors.Is(err, machine.ErrWatch) {
		return &ui.Error{
			Msg:  machine.ErrWatch.Error(),
			Hint: "run devvm up again" + see(b.files.SupervisorLog(), "its log: devvm logs --supervisor"),
			Err:  err,
		}
	}
	if errors.Is(err, machine.ErrNoKernel) {
		return fmt.Errorf("%w within %s", err, cmp.Or(b.Kernel, patienceKernel))
	}
	return err
}

// because puts a reason in brackets, if there is one.
func because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}

// died explains a VM that stopped while its engine was awaited.
func (b *boot) died(dom vm.Domain, kernelUp bool) error {
	if b.attends && (dom.State == vm.StateStopped || dom.State == vm.StateSaved || dom.Halt == vm.HaltPassing || dom.Halt == vm.HaltSignal) {
		return fmt.Errorf("%w: it is %s%s", errWentOff, dom.State, because(dom.Reason))
	}
	if dom.Halt == vm.HaltIO {
		if err := b.errFull(b.files); err != nil {
			return err
		}
	}
	if b.accel == vm.AccelKVM && !kernelUp && dom.Halt == "" {
		return fmt.Errorf("%w: the guest died before its kernel ran (%s)", vm.ErrAccel, dom.Reason)
	}
	hint := "start it again with: devvm up" + seeConsole(b.files)
	if dom.Halt == vm.HaltSignal {
		hint = "let it go on with: devvm up"
	}
	return &ui.Error{
		Msg:  fmt.Sprintf("the VM stopped while it was starting: %s%s", dom.State, because(dom.Reason)),
		Hint: hint,
	}
}
