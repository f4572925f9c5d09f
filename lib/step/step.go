//go:build !steps

package step

// At marks a step.
func At(string) {}
