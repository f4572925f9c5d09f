package process_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/process"
)

// deadline is how long a test waits for something that takes no time.
const deadline = 30 * time.Second

// run starts a shell script that prints a line when it is ready. A read in it
// lasts for ever.
func run(t *testing.T, script string) process.ID {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); in.Close() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	go cmd.Wait()
	return process.ID(cmd.Process.Pid)
}

func open(t *testing.T, id process.ID) *process.Handle {
	t.Helper()
	h, err := process.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func TestWhatIsKnown(t *testing.T) {
	id := run(t, `trap : USR2; echo ready; read line`)
	all, err := process.All()
	if err != nil || !slices.Contains(all, id) || !slices.Contains(all, process.ID(os.Getpid())) {
		t.Errorf("%v, %v: without %v", all, err, id)
	}
	shell, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	if name, path, argv := id.Name(), id.Executable(), id.Arguments(); name != "sh" || path != shell || len(argv) != 3 || argv[1] != "-c" {
		t.Errorf("%q, %q, %q", name, path, argv)
	}
	if !id.Catches(unix.SIGUSR2) || id.Catches(unix.SIGUSR1) {
		t.Errorf("SIGUSR2 is caught: %v; SIGUSR1: %v", id.Catches(unix.SIGUSR2), id.Catches(unix.SIGUSR1))
	}
	if !slices.Contains(process.ID(os.Getpid()).Children(), id) {
		t.Errorf("%v is not among the children", id)
	}
	if got := process.WithoutChildren([]process.ID{process.ID(os.Getpid()), id}); !slices.Equal(got, []process.ID{process.ID(os.Getpid())}) {
		t.Errorf("without children: %v", got)
	}
	if !id.SameNamespace() || !id.SameRoot() {
		t.Errorf("namespace %v, root %v", id.SameNamespace(), id.SameRoot())
	}
}

func TestOfNobody(t *testing.T) {
	const nobody = process.ID(1 << 30) // more than any kernel counts
	if nobody.Name() != "" || nobody.Executable() != "" || nobody.Arguments() != nil || nobody.Descendants() != nil || nobody.SameRoot() {
		t.Error("nobody has properties")
	}
	if _, err := process.Open(nobody); err == nil {
		t.Error("nobody can be opened")
	}
}

func TestEnd(t *testing.T) {
	for script, killed := range map[string]bool{
		`echo ready; exec sleep 600`:                               false,
		`trap "exit 0" TERM; echo ready; kill -STOP $$; read line`: false,
		`trap "" TERM; echo ready; read line`:                      true,
	} {
		id := run(t, script)
		h := open(t, id)
		if !h.Alive() {
			t.Fatalf("%s: ended by itself", script)
		}
		grace := deadline
		if killed {
			grace = 200 * time.Millisecond
		}
		if got, err := h.End(t.Context(), grace); got != killed || err != nil {
			t.Errorf("%s: killed: %v, %v; want %v", script, got, err, killed)
		}
		if h.Alive() || !errors.Is(h.Signal(unix.SIGTERM), process.ErrGone) {
			t.Errorf("%s: lives on", script)
		}
		if got, err := h.End(t.Context(), grace); got || err != nil {
			t.Errorf("%s: a second time: %v, %v", script, got, err)
		}
	}
}

func TestInterrupted(t *testing.T) {
	h := open(t, run(t, `trap "" TERM; echo ready; read line`))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.End(ctx, deadline); !errors.Is(err, context.Canceled) || !h.Alive() {
		t.Errorf("%v, alive: %v; want it interrupted and nobody killed", err, h.Alive())
	}
}

func TestFind(t *testing.T) {
	id := run(t, `echo ready; exec sleep 600`)
	asked := 0
	found, err := process.Find([]process.ID{1 << 30, id}, func(process.ID) bool { asked++; return true })
	if err != nil && !errors.Is(err, process.ErrGone) {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].ID != id || asked != 3 {
		t.Fatalf("%v, asked %d times; want %v, asked again once it is open", found, asked, id)
	}
	found[0].Close()
	// One that changes its mind while it is opened has become somebody else.
	first := true
	found, err = process.Find([]process.ID{id}, func(process.ID) bool { was := first; first = false; return was })
	if err != nil || len(found) != 0 {
		t.Errorf("%v, %v", found, err)
	}
}
