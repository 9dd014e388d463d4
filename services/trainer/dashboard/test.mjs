// Bundles each test/*.test.ts and runs it with node's test runner.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";

const HERE = import.meta.dirname;
const out = mkdtempSync(join(tmpdir(), "mor-dashboard-"));
const tests = readdirSync(join(HERE, "test")).map((name) => join(HERE, "test", name));
await build({ entryPoints: tests, outdir: out, bundle: true, platform: "node", format: "esm", outExtension: { ".js": ".mjs" } });
const { status } = spawnSync(process.execPath, ["--test", out], { stdio: "inherit" });
rmSync(out, { recursive: true });
process.exit(status ?? 1);
