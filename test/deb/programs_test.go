package deb_test

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

var programs = []string{"usr/sbin/skd-vrrpd", "usr/sbin/skd-inotify", "usr/sbin/skd-hooks", "usr/bin/skd-prompt"}

func TestPrograms(t *testing.T) {
	deb := built[0].deb(t, "")
	checkPrograms(t, deb)
	dir := unpack(t, deb)
	for _, program := range programs {
		want := filepath.Base(program) + " version " + version(t) + "\n"
		if got := output(t, filepath.Join(dir, program), "--version"); got != want {
			t.Errorf("--version: %q, want %q", got, want)
		}
	}
}

// checkPrograms looks at the ELF files: position-independent, without symbols and
// writable tables, and in need of no library that Depends lacks.
func checkPrograms(t *testing.T, deb string) {
	t.Helper()
	machine := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[field(t, deb, "Architecture")]
	depends := strings.Split(field(t, deb, "Depends"), ", ")
	dir := unpack(t, deb)
	for _, program := range programs {
		f, err := elf.Open(filepath.Join(dir, program))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		libraries, err := f.ImportedLibraries()
		if err != nil {
			t.Fatal(err)
		}
		flags, err := f.DynValue(elf.DT_FLAGS_1)
		if err != nil {
			t.Fatal(err)
		}
		segment := func(kind elf.ProgType) *elf.Prog {
			i := slices.IndexFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == kind })
			if i < 0 {
				return nil
			}
			return f.Progs[i]
		}
		switch {
		case f.Machine != machine:
			t.Errorf("%s is for %v", program, f.Machine)
		case len(libraries) != 0:
			t.Errorf("%s needs %v", program, libraries)
		case f.Type != elf.ET_DYN || len(flags) == 0 || flags[0]&uint64(elf.DF_1_PIE) == 0:
			t.Errorf("%s is not position-independent: type %v, flags %x", program, f.Type, flags)
		case flags[0]&uint64(elf.DF_1_NOW) == 0 || segment(elf.PT_GNU_RELRO) == nil:
			t.Errorf("%s does not make its tables read-only", program)
		case f.Section(".symtab") != nil || f.Section(".debug_info") != nil:
			t.Errorf("%s is not stripped", program)
		}
		if p := segment(elf.PT_INTERP); p != nil && !slices.Contains(depends, "libc6") {
			interpreter, _ := io.ReadAll(p.Open())
			t.Errorf("%s is started by %s, of libc6, which is not in Depends: %v", program, bytes.TrimRight(interpreter, "\x00"), depends)
		}
	}
}

func TestCopyright(t *testing.T) {
	checkCopyright(t, built[0].deb(t, ""))
}

var (
	licenseName = regexp.MustCompile(`^\S+( and \S+)*$`)
	nonWords    = regexp.MustCompile(`[^a-z0-9]+`)
)

// words is a text without what differs between two copies of a licence.
func words(text string) string {
	return nonWords.ReplaceAllString(strings.ToLower(text), " ")
}

// checkCopyright compares debian/copyright with what is linked into the programs:
// each module and the standard library stand there, and nothing else, with the
// very words of their licences.
func checkCopyright(t *testing.T, deb string) {
	t.Helper()
	dir := unpack(t, deb)
	modules := map[string]bool{}
	for _, program := range programs {
		info, err := buildinfo.ReadFile(filepath.Join(dir, program))
		if err != nil {
			t.Fatal(err)
		}
		for _, module := range info.Deps {
			modules[module.Path] = true
		}
	}
	if len(modules) == 0 {
		t.Fatal("the programs do not say which modules they have")
	}

	content, err := os.ReadFile(filepath.Join(dir, "usr/share/doc", name, "copyright"))
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{} // by the licence's name
	named := map[string]string{} // the licence's name, by pattern
	for paragraph := range strings.SplitSeq(string(content), "\n\n") {
		fields := parse(paragraph)
		license, text, _ := strings.Cut(fields["License"], "\n")
		if fields["Files"] == "" {
			texts[license] = text
			continue
		}
		if fields["Copyright"] == "" || !licenseName.MatchString(license) {
			t.Errorf("%s: copyright %q, licence %q", fields["Files"], fields["Copyright"], license)
		}
		for pattern := range strings.FieldsSeq(fields["Files"]) {
			named[pattern] = license
		}
	}

	used := map[string]bool{}
	for pattern, license := range named {
		for each := range strings.SplitSeq(license, " and ") {
			used[each] = true
			if texts[each] == "" {
				t.Errorf("%s: there is no text of the licence %s", pattern, each)
			}
		}
		if module, ok := strings.CutPrefix(pattern, "vendor/"); ok && !modules[strings.TrimSuffix(module, "/*")] {
			t.Errorf("%s is in debian/copyright, but in none of the programs", pattern)
		}
	}
	for license := range texts {
		if license != "" && !used[license] {
			t.Errorf("nothing has the licence %s", license)
		}
	}
	for module := range modules {
		license, ok := named["vendor/"+module+"/*"]
		if !ok {
			t.Errorf("%s is in the programs, but not in debian/copyright", module)
			continue
		}
		cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module)
		cmd.Dir = root
		source, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", module, err)
		}
		checkLicense(t, module, strings.TrimSpace(string(source)), license, texts[license])
	}
	license, ok := named["go/src/*"]
	if !ok {
		t.Fatal("Go's standard library is not in debian/copyright")
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	checkLicense(t, "Go "+runtime.Version(), strings.TrimSpace(string(goroot)), license, texts[license])
}

// parse returns the fields of a paragraph of control data.
func parse(paragraph string) map[string]string {
	fields, key := map[string]string{}, ""
	for line := range strings.SplitSeq(paragraph, "\n") {
		if strings.HasPrefix(line, " ") {
			fields[key] += "\n" + strings.TrimPrefix(line[1:], ".")
		} else if name, value, ok := strings.Cut(line, ":"); ok {
			key = name
			fields[key] = strings.TrimSpace(value)
		}
	}
	return fields
}

// checkLicense compares a licence's text with the file that is in the source.
func checkLicense(t *testing.T, what, dir, license, text string) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "LICENSE*"))
	if len(files) != 1 {
		t.Errorf("%s: licences %v in %q", what, files, dir)
		return
	}
	content, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	theirs := words(string(content))
	if license == "Apache-2.0" {
		// Debian has the text; here is what the licence itself wants said about it.
		if !strings.HasPrefix(strings.TrimSpace(theirs), "apache license version 2 0 january 2004") {
			t.Errorf("%s: %s is not that of %s", what, files[0], license)
		}
		return
	}
	if !strings.Contains(theirs, strings.TrimSpace(words(text))) {
		t.Errorf("%s: %s is not the %s of debian/copyright", what, files[0], license)
	}
}
