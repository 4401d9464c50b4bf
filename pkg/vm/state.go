package vm

import (
	libvirt "github.com/digitalocean/go-libvirt"
)

// halt tells which of libvirt's states is one that passes by itself, and which a failed write.
func halt(state libvirt.DomainState, reason int32) Halt {
	switch {
	case state == libvirt.DomainShutdown:
		return HaltPassing
	case state != libvirt.DomainPaused:
		return ""
	}
	switch libvirt.DomainPausedReason(reason) {
	case libvirt.DomainPausedIoerror:
		return HaltIO
	case libvirt.DomainPausedSave, libvirt.DomainPausedDump, libvirt.DomainPausedSnapshot,
		libvirt.DomainPausedShuttingDown, libvirt.DomainPausedStartingUp:
		return HaltPassing
	}
	return ""
}

// reduce maps libvirt's state and reason to devvm's.
func reduce(state libvirt.DomainState, reason int32, saved bool) (State, string) {
	switch state {
	case libvirt.DomainRunning, libvirt.DomainBlocked:
		return StateRunning, runningReasons[libvirt.DomainRunningReason(reason)]
	case libvirt.DomainShutdown:
		return StateRunning, "the guest is powering off"
	case libvirt.DomainPaused, libvirt.DomainPmsuspended:
		if state == libvirt.DomainPmsuspended {
			return StatePaused, "suspended by the guest"
		}
		return StatePaused, pausedReasons[libvirt.DomainPausedReason(reason)]
	case libvirt.DomainCrashed:
		return StateCrashed, "the guest crashed"
	}
	if saved {
		return StateSaved, "its memory is saved"
	}
	if libvirt.DomainShutoffReason(reason) == libvirt.DomainShutoffCrashed {
		return StateCrashed, shutoffReasons[libvirt.DomainShutoffCrashed]
	}
	return StateStopped, shutoffReasons[libvirt.DomainShutoffReason(reason)]
}

var runningReasons = map[libvirt.DomainRunningReason]string{
	libvirt.DomainRunningBooted:       "booted",
	libvirt.DomainRunningRestored:     "resumed from its saved memory",
	libvirt.DomainRunningFromSnapshot: "resumed from a snapshot",
	libvirt.DomainRunningUnpaused:     "resumed",
	libvirt.DomainRunningSaveCanceled: "a save was cancelled",
	libvirt.DomainRunningWakeup:       "woke up",
	libvirt.DomainRunningCrashed:      "resumed after a crash",
}

var pausedReasons = map[libvirt.DomainPausedReason]string{
	libvirt.DomainPausedUnknown:      "QEMU stopped it after an error of its own",
	libvirt.DomainPausedUser:         "paused on request",
	libvirt.DomainPausedSave:         "its memory is being saved",
	libvirt.DomainPausedDump:         "its memory is being dumped",
	libvirt.DomainPausedIoerror:      "disk I/O error (no space left on the host?)",
	libvirt.DomainPausedWatchdog:     "stopped by its watchdog",
	libvirt.DomainPausedFromSnapshot: "reverted to a paused snapshot",
	libvirt.DomainPausedShuttingDown: "powering off",
	libvirt.DomainPausedSnapshot:     "a snapshot is being taken",
	libvirt.DomainPausedCrashed:      "the guest crashed",
	libvirt.DomainPausedStartingUp:   "starting",
	libvirt.DomainPausedAPIError:     "stopped by an error of libvirt",
}

var shutoffReasons = map[libvirt.DomainShutoffReason]string{
	libvirt.DomainShutoffShutdown:     "powered off",
	libvirt.DomainShutoffDestroyed:    "stopped by force",
	libvirt.DomainShutoffCrashed:      "QEMU crashed or was killed",
	libvirt.DomainShutoffSaved:        "its memory was saved",
	libvirt.DomainShutoffFailed:       "its start failed",
	libvirt.DomainShutoffFromSnapshot: "reverted to a snapshot taken while off",
	libvirt.DomainShutoffDaemon:       "stopped by libvirt's daemon",
}
