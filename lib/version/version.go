// Package version holds what every program's --version prints.
package version

// Version is set by the linker: make build takes it from git, the Debian
// package from debian/changelog.
var Version = "dev"
