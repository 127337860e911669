// Refresh the live part of a page of the console while it is seen. Without this script the page is just as complete.
'use strict';
{
    const ID = 'jobs-live';
    let paused = false;

    function isBusy(live) {
        const focused = document.activeElement;
        const typing = focused && live.contains(focused) && focused.matches('input, textarea, select');
        const selection = window.getSelection();
        return typing || (selection && !selection.isCollapsed && live.contains(selection.anchorNode));
    }

    function openDetails(live) {
        return Array.from(live.querySelectorAll('details'), (details) => details.open);
    }

    async function refresh() {
        const live = document.getElementById(ID);
        if (!live || document.hidden || paused || isBusy(live)) {
            return;
        }
        const answer = await fetch(window.location.href, {credentials: 'same-origin', headers: {'X-Requested-With': 'XMLHttpRequest'}});
        if (!answer.ok || answer.redirected) {
            return;
        }
        const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html').getElementById(ID);
        if (!fresh || isBusy(live)) {
            return;
        }
        const opened = openDetails(live);
        fresh.querySelectorAll('details').forEach((details, index) => { details.open = opened[index] ?? details.open; });
        const links = Array.from(live.querySelectorAll('a, button, summary'));
        const place = links.indexOf(document.activeElement);
        live.replaceChildren(...fresh.childNodes);
        live.dataset.refresh = fresh.dataset.refresh || '';
        if (place >= 0) {
            live.querySelectorAll('a, button, summary')[place]?.focus();
        }
        document.querySelector('.jobs-refresh span').textContent = new Date().toLocaleTimeString();
    }

    async function run() {
        try {
            await refresh();
        } catch {
            // The next round tries again: the server may be away for a moment.
        }
        const seconds = Number(document.getElementById(ID)?.dataset.refresh);
        if (seconds) {
            window.setTimeout(run, seconds * 1000);
        }
    }

    function addControl(live) {
        const control = document.createElement('div');
        const button = document.createElement('button');
        control.className = 'jobs-refresh';
        control.append(document.createElement('span'), button);
        button.type = 'button';
        button.className = 'jobs-tool';
        const label = () => { button.textContent = paused ? live.dataset.labelResume || '▶' : live.dataset.labelPause || '⏸'; };
        button.addEventListener('click', () => {
            paused = !paused;
            button.setAttribute('aria-pressed', String(paused));
            label();
        });
        label();
        document.querySelector('.jobs-bar').prepend(control);
    }

    document.addEventListener('DOMContentLoaded', () => {
        const live = document.getElementById(ID);
        if (live && Number(live.dataset.refresh)) {
            addControl(live);
            window.setTimeout(run, Number(live.dataset.refresh) * 1000);
        }
    });
    document.addEventListener('visibilitychange', () => { refresh().catch(() => {}); });
}
