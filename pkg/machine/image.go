package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/image"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vmnet"
)

// image finds the image of the VM: the one that its disk was made from, otherwise the
// configuration's, which is built if it is missing.
func (m *Machine) image(ctx context.Context) (image.Image, error) {
	if state.Exists(m.Files.Disk()) {
		backing, err := Below(ctx, m.Files.Disk())
		if err != nil {
			return image.Image{}, errDisk(m.Files, err)
		}
		if err := m.checkBacking(backing); err != nil {
			return image.Image{}, err
		}
		m.backing = backing
		digest := imageOf(backing)
		img, err := m.Images.Resolve(ctx, digest)
		if errors.Is(err, image.ErrNotFound) || errors.Is(err, image.ErrDamaged) {
			what := "gone"
			if errors.Is(err, image.ErrDamaged) {
				what = "damaged"
			}
			return img, &ui.Error{
				Msg:  fmt.Sprintf("the image that this VM's disk is based on is %s (%s)", what, filepath.Dir(backing[len(backing)-1])),
				Hint: "bring it back (devvm image import), or start over with: devvm nuke",
				Err:  err,
			}
		}
		if err == nil {
			m.noteImage(img)
		}
		return img, err
	}
	return m.newImage(ctx)
}

// noteImage tells the user that a VM does not have the image that devvm.toml asks for.
func (m *Machine) noteImage(img image.Image) {
	if m.Config.Image != img.Name && !strings.HasPrefix(img.Digest, m.Config.Image) {
		m.Progress.Note("%s asks for image %s; this VM was made from %s, which it keeps until devvm nuke", config.FileName, m.Config.Image, img.Name)
	}
}

// newImage finds the image of the configuration, which is built if it is missing.
func (m *Machine) newImage(ctx context.Context) (image.Image, error) {
	recipe := image.RecipeDigest(m.Config.Image)
	img, err := m.Images.Resolve(ctx, m.Config.Image)
	if err == nil && img.Recipe != "" && recipe != "" && img.Recipe != recipe {
		m.Progress.Note("this devvm comes with a newer recipe for image %s; build it with: devvm image build %s", img.Name, img.Name)
	}
	switch {
	case err == nil:
		return img, nil
	case !errors.Is(err, image.ErrNotFound), recipe == "":
		return img, ExplainImage(m.Config, err)
	}
	m.Progress.Start("image", "building the base image "+m.Config.Image+" (once)")
	log, err := os.OpenFile(filepath.Join(m.Files.Logs, "image-build.log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return img, fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	img, err = m.Images.Build(ctx, image.BuildOptions{
		Name: m.Config.Image, Log: log,
		Progress: func(step string) { m.Progress.running.Detail("%s", step) },
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

// imageOf returns the digest of the image below a disk: an image is in a directory named by its
// digest.
func imageOf(backing []string) string {
	if len(backing) == 0 {
		return ""
	}
	return filepath.Base(filepath.Dir(backing[len(backing)-1]))
}

// spec is the VM as the configuration wants it.
func (m *Machine) spec(img image.Image) vm.Spec {
	credentials := map[string]string{}
	if !img.CloudInit {
		for _, name := range []string{credentialMachine, credentialKeys, credentialHostKey, credentialHostname, credentialTimezone, credentialDaemon} {
			credentials[name] = filepath.Join(m.Files.Credentials(), name)
		}
		if img.Mounts {
			credentials[credentialShare] = filepath.Join(m.Files.Credentials(), credentialShare)
		}
	}
	return vm.Spec{
		Name:        m.Project.Name,
		UUID:        m.Project.UUID,
		Project:     m.Project.Dir,
		Image:       img.Digest,
		CPUs:        m.Config.CPUs,
		Memory:      m.Config.Memory,
		Accel:       m.Accel,
		Disk:        m.Files.Disk(),
		Backing:     m.backing,
		Seed:        m.seed(img),
		Kernel:      img.Kernel(),
		Initrd:      img.Initrd(),
		Cmdline:     img.Cmdline,
		NetSocket:   m.Files.NetSocket(),
		MAC:         guestMAC,
		MTU:         vmnet.DefaultMTU,
		Console:     m.Files.Console(),
		Credentials: credentials,
	}
}

// ExplainImage explains an error about the image of a configuration.
func ExplainImage(cfg config.Config, err error) error {
	if errors.Is(err, image.ErrDamaged) {
		return &ui.Error{
			Err:  err,
			Hint: "find it with devvm image ls; repair it, or remove it (devvm image rm) and build or import it again",
		}
	}
	if !errors.Is(err, image.ErrNotFound) && !errors.Is(err, image.ErrAmbiguous) {
		return err
	}
	return &ui.Error{Code: ui.ExitUsage, Err: err, Msg: cfg.Origin("image"), Hint: "list the images with: devvm image ls"}
}
