package skudonet

import (
	"bytes"
	"context"
	"os/exec"
	"strings"
	"time"
	"unicode"
)

// forVersion is how long dpkg may take to look a version up.
const forVersion = 2 * time.Second

// Version is the version of the package skudonet on this node, "" where that is
// not known: it is not installed, or there is no dpkg.
func Version(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, forVersion)
	defer cancel()
	cmd := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Version}", "skudonet")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	out = bytes.TrimSpace(out)
	if err != nil || strings.ContainsFunc(string(out), func(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsSpace(r) }) {
		return ""
	}
	return string(out)
}
