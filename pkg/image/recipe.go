package image

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/devvm/devvm/images"
)

// stockSuffix marks the untrimmed variant in names of recipes and images.
const stockSuffix = "-stock"

// Default is the recipe that projects use when they name no image.
const Default = "debian-13"

// recipe is one of the directories in images/, in one of its variants.
type recipe struct {
	name  string // the image's name
	files fs.FS
	stock bool
}

// recipeNames lists the names that Build knows, the untrimmed variants left out.
func recipeNames(all fs.FS) []string {
	entries, err := fs.ReadDir(all, ".")
	if err != nil { // an embedded directory is always readable
		panic(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func openRecipe(all fs.FS, name string) (recipe, error) {
	base, stock := strings.CutSuffix(name, stockSuffix)
	if names := recipeNames(all); !slices.Contains(names, base) {
		return recipe{}, fmt.Errorf("recipe %q: %w; there is %s", name, ErrNotFound, strings.Join(names, ", "))
	}
	files, err := fs.Sub(all, base)
	if err != nil {
		return recipe{}, fmt.Errorf("recipe %q: %w", name, err)
	}
	return recipe{name: name, files: files, stock: stock}, nil
}

// RecipeDigest identifies this program's recipe for the images of a name: an
// image whose manifest says another was built by another version. It is ""
// for a name without recipe.
func RecipeDigest(name string) string {
	r, err := openRecipe(images.FS, name)
	if err != nil {
		return ""
	}
	return r.digest()
}

func (r recipe) variant() string {
	if r.stock {
		return "stock"
	}
	return "trim"
}

func (r recipe) digest() string {
	h := sha256.New()
	fmt.Fprintf(h, "variant %s\n", r.variant())
	err := r.walk(func(name string, data []byte) error {
		fmt.Fprintf(h, "%q %d\n", name, len(data))
		h.Write(data)
		return nil
	})
	if err != nil { // an embedded file is always readable
		panic(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (r recipe) walk(do func(name string, data []byte) error) error {
	return fs.WalkDir(r.files, ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := fs.ReadFile(r.files, name)
		if err != nil {
			return err
		}
		return do(name, data)
	})
}

// extract writes the recipe's files below dir, readable by everyone.
func (r recipe) extract(dir string) error {
	err := r.walk(func(name string, data []byte) error {
		target := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(target, data, 0o644); err != nil {
			return err
		}
		return os.Chmod(target, 0o644) // whatever the umask
	})
	if err != nil {
		return fmt.Errorf("write recipe: %w", err)
	}
	return filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		return os.Chmod(p, 0o755)
	})
}

// lines reads a file of the recipe that has an item per line and # comments.
// A file that is not there has none.
func (r recipe) lines(name string) []string {
	data, err := fs.ReadFile(r.files, path.Clean(name))
	if err != nil {
		return nil
	}
	var items []string
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line != "" {
			items = append(items, line)
		}
	}
	return items
}

// packages are what mmdebstrap installs.
func (r recipe) packages() []string {
	return append(r.lines("packages"), r.lines("packages."+r.variant())...)
}
