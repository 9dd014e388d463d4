// Bundles src/ into the trainer's static folder, and records a digest of everything the bundle is made of.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { build } from "esbuild";

const HERE = import.meta.dirname;
const OUT = join(HERE, "../mor_trainer/static");
const SOURCES = ["src", "build.mjs", "package-lock.json", "tsconfig.json"];
const BUNDLED = ["preact", "uplot", "eventsource-parser"];

function files(path) {
  if (!statSync(path).isDirectory()) return [path];
  return readdirSync(path).flatMap((name) => files(join(path, name)));
}

/** SHA-256 over "path NUL content NUL" of every source, sorted by path; tests/browser/test_build.py computes the same. */
function digest() {
  const hash = createHash("sha256");
  const paths = SOURCES.flatMap((name) => files(join(HERE, name))).map((path) => relative(HERE, path));
  for (const path of paths.sort()) hash.update(`${path}\0`).update(readFileSync(join(HERE, path))).update("\0");
  return hash.digest("hex");
}

function licences() {
  return BUNDLED.map((name) => {
    const folder = join(HERE, "node_modules", name);
    const { version } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    return `${name} ${version}\n\n${readFileSync(join(folder, "LICENSE"), "utf8").trim()}\n`;
  }).join("\n---\n\n");
}

await build({
  entryPoints: { app: join(HERE, "src/main.tsx"), style: join(HERE, "src/style.css") },
  outdir: OUT,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022"],
  legalComments: "none",
  logLevel: "warning",
});
writeFileSync(join(OUT, "index.html"), readFileSync(join(HERE, "src/index.html")));
writeFileSync(join(OUT, "LICENSES.txt"), licences());
writeFileSync(join(OUT, "build.json"), `${JSON.stringify({ sources: digest() })}\n`);
