// What a test with testcontainers does: it starts a container, waits until its port answers,
// looks into it, and removes it. "restart" starts it again in between; with "leave" its
// removal is up to Ryuk.
const assert = require("node:assert");
const { GenericContainer, Wait } = require("testcontainers");

async function page(container) {
	const answer = await fetch(`http://${container.getHost()}:${container.getMappedPort(8080)}/index.html`);
	return answer.text();
}

async function main(how) {
	const ready = [Wait.forListeningPorts(), Wait.forHttp("/index.html", 8080)];
	if (how !== "restart") {
		// After a restart the library asks for the log since the engine's StartedAt. A line that came
		// before the engine wrote that down is never seen, and it waits for a minute, on any engine.
		ready.push(Wait.forLogMessage("serving"));
	}
	const container = await new GenericContainer("box")
		.withCommand(["sh", "-c", "echo serving; exec httpd -f -p 8080 -h /www"])
		.withCopyContentToContainer([{ content: "hello\n", target: "/www/index.html" }])
		.withExposedPorts(8080)
		.withWaitStrategy(Wait.forAll(ready))
		.start();
	assert.strictEqual(await page(container), "hello\n");
	const { output, exitCode } = await container.exec(["sh", "-c", "cat /www/index.html; exit 3"]);
	assert.deepStrictEqual([output, exitCode], ["hello\n", 3]);
	if (how === "restart") {
		for (let i = 0; i < 3; i++) {
			const start = Date.now();
			await container.restart();
			console.log(`note: restart ${i}: ${Date.now() - start} ms`);
			assert.strictEqual(await page(container), "hello\n");
		}
	}
	if (how === "leave") {
		process.exit(0);
	}
	await container.stop();
}

main(process.argv[2]).catch((e) => {
	console.error(e);
	process.exit(1);
});
